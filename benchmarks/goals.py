"""Judge measured cells by the goals for speed, G1 to G8 and G10, and write the report again from a results file.

    python benchmarks/goals.py benchmarks/results/FILE.json

S is the speed-up over the dense model, F what the MACs promise, O the oracle's speed-up on the same token counts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from tokensieve.errors import TokensieveError
from tokensieve.measure.results import DENSE

Cells = Mapping[str, Mapping[str, Any]]
Verdict = Literal["met", "missed", "not measurable here"]
HIGH = 1024  # tokens from which the goals for high resolution hold
SAME_F = 0.03  # how near the promised factors of two methods lie that count as one budget


@dataclass(frozen=True)
class Case:
    """One figure that a goal is about.

    Attributes:
        cell: id of the cell it came from.
        variant: spec of the method.
        value: the figure.
        noisy: the cell says that its rounds lie far apart.
        note: what to read it with.
    """

    cell: str
    variant: str
    value: float
    noisy: bool = False
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A goal and the figures it is judged by.

    Attributes:
        name: "G1", …
        what: the figure in words.
        needed: the bound.
        at_least: whether figures must reach the bound, or must not exceed it.
        cases: every figure measured here.
        lacking: why there is none, or what would have to be measured.
    """

    name: str
    what: str
    needed: float
    at_least: bool
    cases: tuple[Case, ...]
    lacking: str

    @property
    def verdict(self) -> Verdict:
        """Met when all cases are."""
        if not self.cases:
            return "not measurable here"
        return "missed" if self.missed else "met"

    @property
    def missed(self) -> tuple[Case, ...]:
        """The cases beyond the bound, the worst first."""
        return tuple(case for case in self.ranked if not self.holds(case))

    @property
    def ranked(self) -> tuple[Case, ...]:
        """All cases, the worst first."""
        return tuple(sorted(self.cases, key=lambda case: case.value, reverse=not self.at_least))

    @property
    def worst(self) -> Case | None:
        """The case that decides."""
        return self.ranked[0] if self.cases else None

    def holds(self, case: Case) -> bool:
        """Whether a case reaches the bound."""
        return case.value >= self.needed if self.at_least else case.value <= self.needed


def judge(cells: Cells, *, on_cpu: bool) -> list[Goal]:
    """Every goal with its cases among ``cells``, the records of one results file by id.

    Args:
        cells: what ``Store.cells`` holds.
        on_cpu: whether they were measured on a CPU; batches count as large from 16 on there, from 64 on a GPU.
    """
    large = 16 if on_cpu else 64
    return [
        *_whole_model_goals(cells, large),
        *_operator_goals(cells, large),
        *_reference_goals(cells, on_cpu),
        *_selector_goals(cells),
        *_ragged_goals(cells),
        *_export_goals(cells),
        *_memory_goals(cells),
    ]


def _whole_model_goals(cells: Cells, large: int) -> Iterator[Goal]:
    """G1 to G3 for eager models, and again for every other engine that was measured: each stands for itself."""
    by_engine: dict[str, dict[str, Mapping[str, Any]]] = {"eager": {}}
    for name, record in cells.items():
        by_engine.setdefault(record["setting"]["engine"], {})[name] = record
    for engine, own in by_engine.items():
        words = "" if engine == "eager" else f", {engine}"
        for goals in (_oracle_goals(own, large), _promise_goals(own), _single_image_goals(own)):
            yield from (replace(goal, what=goal.what + words) for goal in goals)


def _rows(cells: Cells, kind: str) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(id, setting, row) of every reduced variant in the cells of a kind that were measured."""
    for name, record in cells.items():
        if record["kind"] == kind and "failed" not in record:
            for row in record["rows"]:
                if row["variant"] != DENSE:
                    yield name, record["setting"], row


def _cases(
    cells: Cells,
    kind: str,
    value: Callable[[Mapping[str, Any]], float | None],
    chosen: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
    note: Callable[[Mapping[str, Any]], str] = lambda row: "",
) -> tuple[Case, ...]:
    """A case for every row of ``kind`` whose setting and row are ``chosen`` and that has the ``value``."""
    return tuple(
        Case(cell, row["variant"], figure, bool(row.get("noisy")), note(row))
        for cell, setting, row in _rows(cells, kind)
        if chosen(setting, row) and (figure := value(row)) is not None
    )


def _tokens(row: Mapping[str, Any]) -> int:
    """Tokens that the first block attends to."""
    return int(row["attended"][0])


def _oracle_goals(cells: Cells, large: int) -> Iterable[Goal]:
    def low(kinds: tuple[str, ...]) -> tuple[Case, ...]:
        return _cases(
            cells,
            "model",
            lambda row: row["S_over_O"],
            lambda s, row: s["batch"] >= large and row["kind"] in kinds and _tokens(row) < HIGH,
        )

    lacking = f"no whole model was timed at batch {large} or more"
    yield Goal("G1", f"S/O, pruning and skipping, batch ≥ {large}", 0.97, True, low(("pruning", "skipping")), lacking)
    yield Goal("G1", f"S/O, merging, batch ≥ {large}", 0.95, True, low(("merging",)), lacking)
    high = _cases(cells, "model", lambda row: row["S_over_O"], lambda s, row: _tokens(row) >= HIGH)
    yield Goal("G1", f"S/O at N ≥ {HIGH}", 0.98, True, high, f"no whole model was timed at {HIGH} tokens or more")


def _promise_goals(cells: Cells) -> Iterable[Goal]:
    cases = _cases(
        cells,
        "model",
        lambda row: row["S_over_F"],
        lambda s, row: s["batch"] == 64 and _tokens(row) < HIGH,
        lambda row: f"its oracle realises {row['O'] / row['F']:.3f}",
    )
    yield Goal("G2", "S/F at batch 64", 0.95, True, cases, "no whole model was timed at batch 64")


def _single_image_goals(cells: Cells) -> Iterable[Goal]:
    lacking = "no whole model was timed at batch 1"

    def single(s: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        return bool(s["batch"] == 1)

    yield Goal("G3", "S/O at batch 1", 0.90, True, _cases(cells, "model", lambda row: row["S_over_O"], single), lacking)
    paying = _cases(
        cells,
        "model",
        lambda row: row["S"],
        lambda s, row: single(s, row) and row["F"] >= 1.7,
        lambda row: f"F {row['F']:.2f}, O {row['O']:.2f}",
    )
    yield Goal("G3", "S at batch 1 where F ≥ 1.7", 1.10, True, paying, lacking + " with F ≥ 1.7")
    never = _cases(cells, "model", lambda row: row["S"], single, lambda row: f"F {row['F']:.2f}, O {row['O']:.2f}")
    yield Goal("G3", "S at batch 1", 1.0, True, never, lacking)


def _operator_goals(cells: Cells, large: int) -> Iterable[Goal]:
    def of(model: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
        def chosen(s: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
            busy = s["batch"] >= large or row["tokens"] >= HIGH
            return bool(s["model"].startswith(model) and row["tokens"] >= 197 and busy)

        return chosen

    for name, model, bound in (("ViT-B", "vit_base", 0.02), ("DeiT-S", "deit_small", 0.03)):
        cases = _cases(
            cells,
            "operator",
            lambda row: row["site_share"],
            of(model),
            lambda row: f"middle half {row['low']:.3f} to {row['high']:.3f}",
        )
        yield Goal("G4", f"a site of {name} over a dense block", bound, False, cases, f"no operator cell of {name}")


def _reference_goals(cells: Cells, on_cpu: bool) -> Iterable[Goal]:
    script = "benchmarks/against_tome.py was not run here"

    def at(pixels: int, *batches: int) -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
        def chosen(s: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
            return s["dtype"] == "bfloat16" and s["img_size"] == pixels and (not batches or s["batch"] in batches)

        return chosen

    bounds = (
        ("G5", "at 224", 1.25, at(224)),
        ("G5", "at 1024²", 5.0, at(1024)),
        ("G6", "at 224, batch 64", 1.5, at(224, 64)),
        ("G6", "at 224, batch 1", 3.0, at(224, 1)),
        ("G6", "at 1024²", 4.0, at(1024)),
    )
    for name, where, bound, chosen in bounds:
        here = on_cpu == (name == "G5")
        lacking = script if here else "this is a CPU" if on_cpu else "this is not a CPU"
        cases = _cases(
            cells,
            "reference",
            lambda row: row["over_reference"],
            chosen,
            lambda row: f"S {row['S']:.2f}, the reference {row['reference_S']:.2f}",
        )
        what = f"over the reference ToMe code, bfloat16, {where}"
        yield Goal(name, what, bound, True, cases if here else (), lacking)
    same = _cases(
        cells,
        "reference",
        lambda row: row["same_groups"],
        lambda s, row: True,
        lambda row: f"logits differ by at most {row['largest_difference']:.1e}",
    )
    name = "G5" if on_cpu else "G6"
    yield Goal(name, "share of images whose tokens merge as the reference's, float32", 1.0, True, same, script)


def _selector_goals(cells: Cells) -> Iterable[Goal]:
    lacking = "no selector cell was measured"
    for words, exact in (("reading every row", True), ("reading rows as by default", False)):

        def chosen(s: Mapping[str, Any], row: Mapping[str, Any], exact: bool = exact) -> bool:
            return bool(row["tokens"] <= 577 and (row["stride"] == 1) == exact)

        cases = _cases(
            cells,
            "selector",
            lambda row: row["share"],
            chosen,
            lambda row: f"{row['tokens']} tokens, stride {row['stride']}",
        )
        what = f"ToSA's selector and column sums over a block, N ≤ 577, {words}"
        yield Goal("G7", what, 0.05, False, cases, lacking)
    yield Goal(
        "G7",
        "exponent with which the selector's memory grows with N, up to 1024²",
        1.1,
        False,
        tuple(_growth(cells)),
        "no two selector cells of one model of which one has 4097 tokens",
    )


def _growth(cells: Cells) -> Iterator[Case]:
    """For each model with more than 4000 tokens: the exponent of memory per head from each N ≥ 577 to there."""
    seen: dict[tuple[str, str], list[tuple[int, float, str]]] = {}
    for cell, setting, row in _rows(cells, "selector"):
        per_head = row["peak_memory"] / setting["batch"] / row["heads"]
        seen.setdefault((setting["model"], row["variant"]), []).append((row["tokens"], per_head, cell))
    for (_, variant), points in seen.items():
        for (few, low, _), (many, high, cell) in combinations(sorted(points), 2):
            if many > 4000 and few >= 577:
                exponent = math.log(high / low) / math.log(many / few)
                yield Case(cell, variant, exponent, note=f"from {few} to {many} tokens")


def _ragged_goals(cells: Cells) -> Iterable[Goal]:
    cases = []
    for name, record in cells.items():
        if record["kind"] != "model" or "failed" in record:
            continue
        rows = [row for row in record["rows"] if row["variant"] != DENSE]
        for ragged in (row for row in rows if row["ragged"]):
            static = [row for row in rows if not row["ragged"] and abs(row["F"] / ragged["F"] - 1) <= SAME_F]
            for other in static:
                note = f"beside {other['variant']}"
                cases.append(Case(name, ragged["variant"], ragged["S"] / other["S"], ragged["noisy"], note))
    lacking = "no ragged method was timed beside a static one of the same MACs"
    yield Goal(
        "G8", "S of a ragged method over that of a static one, equal mean tokens", 0.90, True, tuple(cases), lacking
    )


def _export_goals(cells: Cells) -> Iterable[Goal]:
    def always(s: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        return True

    def kept(row: Mapping[str, Any]) -> float:
        return float(row["exported_S_over_F"] / row["S_over_F"])

    lacking = "no exported model was timed"
    yield Goal("G10", "S/F of an exported model over ours", 0.90, True, _cases(cells, "export", kept, always), lacking)
    scatters = _cases(cells, "export", lambda row: row["scatters"], always)
    yield Goal("G10", "Scatter nodes in an exported graph", 0, False, scatters, lacking)
    same = _cases(cells, "export", lambda row: row["same_tokens"], always)
    yield Goal("G10", "share of images for which an export picks our tokens", 1.0, True, same, lacking)


def _memory_goals(cells: Cells) -> Iterable[Goal]:
    cases = []
    for name, record in cells.items():
        if record["kind"] != "model" or "failed" in record:
            continue
        dense = next(row for row in record["rows"] if row["variant"] == DENSE)
        for row in record["rows"]:
            if row["variant"] != DENSE and _tokens(row) > 4000:
                # To two digits: where the peak lies in a block before the first site, both are the same but for crumbs.
                share = round(row["peak_memory"] / dense["peak_memory"], 2)
                cases.append(Case(name, row["variant"], share, note=f"tokens {_tokens(row)} → {min(row['tokens'])}"))
    lacking = "no whole model was timed at 1024²"
    yield Goal("1024²", "peak memory over the dense model's", 1.0, False, tuple(cases), lacking)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    from report import print_goals, write_report
    from store import read_store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    try:
        for path in parser.parse_args(arguments).files:
            store = read_store(path)
            verdicts = judge(store.cells, on_cpu=store.on_cpu)
            write_report(store, verdicts)
            print_goals(verdicts, path.stem)
    except TokensieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
