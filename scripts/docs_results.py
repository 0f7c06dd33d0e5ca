"""The parts of the documentation that state measured results: benchmarks/results/*.json as tables."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from typing import Any

from docs_text import NOTICE, ROOT, number, table, wrap

SHOWN = ("bat", "tome", "evit", "random", "tosa")  # methods of the README's table of results, beside the dense model,
SHOWN_FACTOR = 1.8  # each at the setting whose MACs promise a factor nearest to this
COMPARED = {"gmacs": 3, "top1": 1, "agreement": 1, "kl": 3}  # columns of the comparison and their digits


def results_table(rows: list[dict[str, Any]]) -> str:
    """Rows of ``tokensieve bench`` as a table."""
    batches = list(dict.fromkeys(speed["batch"] for row in rows for speed in row["speed"]))
    head = ["variant", "GMACs", "F", "top-1", "agreement"]
    head += [f"{ratio}, batch {batch}" for batch in batches for ratio in ("S", "S/F", "S/O")]
    cells_of = []
    for row in rows:
        cells = [f"`{row['variant']}`", number(row["gmacs"], 3), number(row["F"], 2)]
        cells += [number(row["top1"], 1), number(row["agreement"], 1)]
        for batch in batches:
            speed: dict[str, Any] = next((s for s in row["speed"] if s["batch"] == batch), {})
            noisy = " ~" if speed.get("noisy") else ""
            cells.append(number(speed.get("S"), 2) + noisy)
            cells += [number(speed.get(ratio), 2) for ratio in ("S_over_F", "S_over_O")]
        cells_of.append(cells)
    return table(head, cells_of)


def measured_by_bench() -> dict[Path, dict[str, Any]]:
    """Results of ``tokensieve bench`` on classifiers, by file; other files and comparisons have pages of their own."""
    found = {}
    for source in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        measured = json.loads(source.read_text(encoding="utf-8"))
        of_bench = {"rows", "settings", "environment"} <= set(measured) and "left_out" not in measured
        if of_bench and all("top1" in row for row in measured["rows"]):  # rows of pixel tasks have none
            found[source] = measured
    return found


def described(source: Path, measured: dict[str, Any], base: Path) -> str:
    """On what a file of results was measured, with a link to all of its columns from a page in ``base``."""
    settings, where = measured["settings"], measured["environment"]
    images = max((row["images"] or 0 for row in measured["rows"]), default=0)
    link = os.path.relpath(source.with_suffix(".csv"), base)
    return (
        f"{images} images, {settings['dtype']}, {where['device']}, {where['threads']} threads, torch {where['torch']}, "
        f"timm {where['timm']}; all columns: [{source.stem}]({link})."
    )


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dense model and one row a method: what the README has room for."""
    chosen = rows[:1]
    for name in SHOWN:
        of_method = [row for row in rows if row["variant"].partition(":")[0] == name]
        chosen += sorted(of_method, key=lambda row: abs(row["F"] - SHOWN_FACTOR))[:1]
    return chosen


def results() -> str:
    """The README's section of measured results, or nothing where none were recorded."""
    for source, measured in measured_by_bench().items():
        about = wrap(
            f"`{measured['settings']['model']}`, no training: {described(source, measured, ROOT)} Top-1 and agreement "
            f"in percent. Of each method the setting nearest to F = {SHOWN_FACTOR}; all of them, with the losses "
            "beside the wins: [docs/results.md](docs/results.md)."
        )
        return f"## Measured\n\n{about}\n{results_table(shown(measured['rows']))}"
    return ""


def results_page() -> str | None:
    """docs/results.md: every row of every run of ``tokensieve bench``."""
    parts = []
    for source, measured in measured_by_bench().items():
        about = wrap(described(source, measured, ROOT / "docs"))
        parts.append(f"## {measured['settings']['model']}\n\n{about}\n{results_table(measured['rows'])}")
    if not parts:
        return None
    noisy = "\n~: the rounds lay more than 10 % apart.\n" if any(" ~ |" in part for part in parts) else ""
    about = wrap(
        "Written by `tokensieve bench`, with no training of the models. Top-1 and agreement with the dense model in "
        "percent. S is the measured speed-up over the dense model; F the dense MACs divided by the reduced ones; O the "
        "speed-up of the oracle, which has the same token counts and a selection that costs nothing."
    )
    return f"# Results\n\n{NOTICE}{about}\n" + "\n".join(parts) + noisy


def comparison_page() -> str | None:
    """docs/comparison.md: every method at the same MACs, where ``tokensieve eval --method all`` has measured them."""
    parts = []
    for source in sorted((ROOT / "benchmarks" / "results").glob("all-methods-*.json")):
        measured = json.loads(source.read_text(encoding="utf-8"))
        settings, where, rows = measured["settings"], measured["environment"], measured["rows"]
        dense, *reduced = rows
        shares: dict[float, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in reduced:
            shares[round(row["gmacs"] / dense["gmacs"] * 20) / 20].append(row)
        path = source.relative_to(ROOT).with_suffix("")
        about = wrap(
            f"{dense['images']} images, {settings['dtype']}, torch {where['torch']}, timm "
            f"{where['timm']}; all columns: [{path.name}.csv](../{path.as_posix()}.csv). The dense model has "
            f"{dense['gmacs']:.3f} GMACs and {dense['top1']:.1f} % top-1. Nothing was trained; what bat and diffrate "
            "were set on is said on their cards. Rows are ordered by KL, the mean divergence from the dense model's "
            "answers, which is less noisy than accuracy."
        )
        picture = f"![Top-1 against GMACs](../{path.as_posix()}.png)"
        parts.append(f"## {settings['model']}\n\n{about}\n{picture}\n")
        for share, group in sorted(shares.items(), reverse=True):
            cells = [
                [f"`{row['variant']}`", *(number(row[key], digits) for key, digits in COMPARED.items())]
                for row in sorted(group, key=lambda row: row["kl"])
            ]
            parts.append(f"### At {share:.0%} of the MACs\n\n" + table(["variant", *COMPARED], cells))
        if measured.get("left_out"):
            cells = [[f"`{name}`", reason] for name, reason in sorted(measured["left_out"].items())]
            parts.append("### Left out\n\n" + table(["method", "because"], cells))
    if not parts:
        return None
    about = wrap(
        "Every method that needs no training, at the same MACs in one run: `tokensieve eval MODEL --method all --macs "
        "0.65`. For each, the option that sets how much it removes is solved for."
    )
    return f"# All methods at the same MACs\n\n{NOTICE}{about}\n" + "\n".join(parts)
