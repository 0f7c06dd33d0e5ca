"""The goals for speed, and what a results file says of them; README.md has the table.

S is the speed-up over the dense model, F what the MACs promise, O the oracle's speed-up on the same token counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from tokensieve.measure.results import DENSE

Record = Mapping[str, Any]
Cells = Mapping[str, Record]
Verdict = Literal["met", "missed", "not measurable here"]
HIGH = 1024  # tokens from which the goals for high resolution hold
SAME_F = 0.03  # how near the promised factors of two methods lie that count as one budget
NO_MODEL = "no whole model was timed "


@dataclass(frozen=True)
class Case:
    """One figure that a goal is about: the cell it came from, the method's spec, the value, whether its rounds lie far
    apart, and what to read it with."""

    cell: str
    variant: str
    value: float
    noisy: bool = False
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A goal and the figures it is judged by.

    Attributes:
        name: what it is about.
        needed: the bound.
        at_least: whether figures must reach the bound, or must not exceed it.
        cases: every figure measured here.
        lacking: why there is none, or what would have to be measured.
    """

    name: str
    needed: float
    at_least: bool
    cases: tuple[Case, ...]
    lacking: str

    @property
    def verdict(self) -> Verdict:
        """Met when all cases are."""
        return ("missed" if self.missed else "met") if self.cases else "not measurable here"

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
    goals = []
    # Eager models, and again every other engine that was measured: each stands for itself.
    by_engine: dict[str, dict[str, Record]] = {"eager": {}}
    for name, record in cells.items():
        by_engine.setdefault(record["setting"]["engine"], {})[name] = record
    for engine, own in by_engine.items():
        words = "" if engine == "eager" else f", {engine}"
        goals += [replace(goal, name=goal.name + words) for goal in _whole_model_goals(own, large)]
    for goals_of in (_operator_goals, _reference_goals, _selector_goals, _export_goals):
        goals += goals_of(cells, on_cpu)
    ragged, memory = tuple(_ragged_cases(cells)), tuple(_memory_cases(cells))
    beside = "no ragged method was timed beside a static one of the same MACs"
    goals.append(Goal("S of a ragged method over that of a static one, equal mean tokens", 0.90, True, ragged, beside))
    goals.append(Goal("peak memory over the dense model's at 1024²", 1.0, False, memory, NO_MODEL + "at 1024²"))
    return goals


def _rows(cells: Cells, kind: str) -> Iterator[tuple[str, Record, Record]]:
    """(id, setting, row) of every reduced variant in the cells of a kind that were measured."""
    for name, record in cells.items():
        if record["kind"] == kind and "failed" not in record:
            yield from ((name, record["setting"], row) for row in record["rows"] if row["variant"] != DENSE)


def _cases(
    cells: Cells,
    kind: str,
    value: Callable[[Record], float | None],
    chosen: Callable[[Record, Record], bool] = lambda setting, row: True,
    note: Callable[[Record], str] = lambda row: "",
) -> tuple[Case, ...]:
    """A case for every row of ``kind`` whose setting and row are ``chosen`` and that has the ``value``."""
    return tuple(
        Case(cell, row["variant"], figure, bool(row.get("noisy")), note(row))
        for cell, setting, row in _rows(cells, kind)
        if chosen(setting, row) and (figure := value(row)) is not None
    )


def _tokens(row: Record) -> int:
    """Tokens that the first block attends to."""
    return int(row["attended"][0])


def _whole_model_goals(cells: Cells, large: int) -> Iterator[Goal]:
    def goal(name: str, needed: float, figure: str, chosen: Any, where: str, note: Any = lambda row: "") -> Goal:
        cases = _cases(cells, "model", lambda row: row[figure], chosen, note)
        return Goal(name, needed, True, cases, NO_MODEL + where)

    def low(*kinds: str) -> Callable[[Record, Record], bool]:
        return lambda s, row: s["batch"] >= large and row["kind"] in kinds and _tokens(row) < HIGH

    def single(s: Record, row: Record) -> bool:
        return bool(s["batch"] == 1)

    def promise(row: Record) -> str:
        return f"F {row['F']:.2f}, O {row['O']:.2f}"

    where = f"at batch {large} or more"
    name = f"oracle share (S/O) of pruning and skipping at batch ≥ {large}"
    yield goal(name, 0.97, "S_over_O", low("pruning", "skipping"), where)
    yield goal(f"oracle share (S/O) of merging at batch ≥ {large}", 0.95, "S_over_O", low("merging"), where)
    where = f"at {HIGH} tokens or more"
    yield goal(f"oracle share (S/O) at N ≥ {HIGH}", 0.98, "S_over_O", lambda s, row: _tokens(row) >= HIGH, where)
    yield goal(
        "promise kept (S/F) at batch 64",
        0.95,
        "S_over_F",
        lambda s, row: s["batch"] == 64 and _tokens(row) < HIGH,
        "at batch 64",
        lambda row: f"its oracle realises {row['O'] / row['F']:.3f}",
    )
    where = "at batch 1"
    yield goal("oracle share (S/O) at batch 1", 0.90, "S_over_O", single, where)
    paying = lambda s, row: single(s, row) and row["F"] >= 1.7  # noqa: E731
    yield goal("speed-up (S) at batch 1 where F ≥ 1.7", 1.10, "S", paying, where + " with F ≥ 1.7", promise)
    yield goal("speed-up (S) at batch 1", 1.0, "S", single, where, promise)


def _operator_goals(cells: Cells, on_cpu: bool) -> Iterator[Goal]:
    large = 16 if on_cpu else 64
    for name, model, bound in (("ViT-B", "vit_base", 0.02), ("DeiT-S", "deit_small", 0.03)):

        def chosen(s: Record, row: Record, model: str = model) -> bool:
            busy = s["batch"] >= large or row["tokens"] >= HIGH
            return bool(s["model"].startswith(model) and row["tokens"] >= 197 and busy)

        cases = _cases(cells, "operator", lambda row: row["site_share"], chosen, _middle)
        yield Goal(f"a site of {name} over a dense block", bound, False, cases, f"no operator cell of {name}")


def _middle(row: Record) -> str:
    return f"middle half {row['low']:.3f} to {row['high']:.3f}"


def _reference_goals(cells: Cells, on_cpu: bool) -> Iterator[Goal]:
    lacking = "python -m benchmarks tome was not run here"
    cpu, gpu = ((224, None, 1.25), (1024, None, 5.0)), ((224, 64, 1.5), (224, 1, 3.0), (1024, None, 4.0))
    for device, bounds in (("CPU", cpu), ("GPU", gpu)):
        here = on_cpu == (device == "CPU")
        for pixels, batch, bound in bounds:

            def chosen(s: Record, row: Record, pixels: int = pixels, batch: int | None = batch) -> bool:
                return s["dtype"] == "bfloat16" and s["img_size"] == pixels and batch in (None, s["batch"])

            cases = _cases(cells, "reference", lambda row: row["over_reference"], chosen, _speeds) if here else ()
            where = f"{pixels}²" + ("" if batch is None else f", batch {batch}")
            name = f"over the reference ToMe code, bfloat16, {device}, {where}"
            yield Goal(name, bound, True, cases, lacking if here else f"this is {'a' if on_cpu else 'not a'} CPU")
    same = _cases(
        cells,
        "reference",
        lambda row: row["same_groups"],
        note=lambda row: f"logits differ by at most {row['largest_difference']:.1e}",
    )
    yield Goal("share of images whose tokens merge as the reference's, float32", 1.0, True, same, lacking)


def _speeds(row: Record) -> str:
    return f"S {row['S']:.2f}, the reference {row['reference_S']:.2f}"


def _selector_goals(cells: Cells, on_cpu: bool) -> Iterator[Goal]:
    for words, exact in (("reading every row", True), ("reading rows as by default", False)):

        def chosen(s: Record, row: Record, exact: bool = exact) -> bool:
            return bool(row["tokens"] <= 577 and (row["stride"] == 1) == exact)

        def note(row: Record) -> str:
            return f"{row['tokens']} tokens, stride {row['stride']}"

        cases = _cases(cells, "selector", lambda row: row["share"], chosen, note)
        name = f"ToSA's selector and column sums over a block, N ≤ 577, {words}"
        yield Goal(name, 0.05, False, cases, "no selector cell was measured")
    lacking = "no two selector cells of one model of which one has 4097 tokens"
    name = "exponent with which the selector's memory grows with N, up to 1024²"
    yield Goal(name, 1.1, False, tuple(_growth(cells)), lacking)


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


def _export_goals(cells: Cells, on_cpu: bool) -> Iterator[Goal]:
    lacking = "no exported model was timed"
    kept = _cases(cells, "export", lambda row: row["exported_S_over_F"] / row["S_over_F"])
    yield Goal("promise kept (S/F) by an exported model over ours", 0.90, True, kept, lacking)
    scatters = _cases(cells, "export", lambda row: row["scatters"])
    yield Goal("Scatter nodes in an exported graph", 0, False, scatters, lacking)
    same = _cases(cells, "export", lambda row: row["same_tokens"])
    yield Goal("share of images for which an export picks our tokens", 1.0, True, same, lacking)


def _ragged_cases(cells: Cells) -> Iterator[Case]:
    rows = list(_rows(cells, "model"))
    for name, _, ragged in rows:
        for other_name, _, other in rows:
            near = abs(other["F"] / ragged["F"] - 1) <= SAME_F
            if name == other_name and ragged["ragged"] and not other["ragged"] and near:
                share = ragged["S"] / other["S"]
                yield Case(name, ragged["variant"], share, ragged["noisy"], f"beside {other['variant']}")


def _memory_cases(cells: Cells) -> Iterator[Case]:
    for name, _, row in _rows(cells, "model"):
        if _tokens(row) > 4000:
            dense = next(one for one in cells[name]["rows"] if one["variant"] == DENSE)
            # To two digits: where the peak lies in a block before the first site, both are the same but for crumbs.
            share = round(row["peak_memory"] / dense["peak_memory"], 2)
            yield Case(name, row["variant"], share, note=f"tokens {_tokens(row)} → {min(row['tokens'])}")
