"""The report of ``benchmarks answers``: a table for each budget, and whether text-guided methods beat the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import table

Row = Mapping[str, Any]
JUDGED = 0.25  # the budget of the verdict
ALLOWED = 1.0  # points that the best text-guided method may lose there
UNGUIDED = "theta=0"  # of cdpruner: diversity alone
CANVASES = (
    "Objects are two patches wide at least, and each of their patches tells what they are, so that a grid of every "
    "second row and column (25 %) misses none: `prefix-grid` is as strong there as the canvases make it."
)


def share(row: Row) -> float:
    """The share of questions that are answered right."""
    right: str = row["right"]
    return right.count("1") / len(right)


def error(row: Row) -> float:
    """Its standard error."""
    return math.sqrt(share(row) * (1 - share(row)) / len(row["right"]))


def loss(row: Row, other: Row) -> tuple[float, float]:
    """By how many points a variant is behind another on the same questions, and the standard error of that."""
    differences = [int(a) - int(b) for a, b in zip(other["right"], row["right"], strict=True)]
    mean = sum(differences) / len(differences)
    spread = sum((one - mean) ** 2 for one in differences) / max(1, len(differences) - 1)
    return 100 * mean, 100 * math.sqrt(spread / len(differences))


def report(rows: Sequence[Row], kinds: Sequence[str], left_out: Mapping[str, str], command: str) -> str:
    """The whole page."""
    dense = next(row for row in rows if row["place"] == "dense")
    right = f"{100 * share(dense):.1f} ± {100 * error(dense):.1f} %"
    about = (
        f"{len(kinds)} held-out questions, one a canvas, 144 image tokens, float32; `{command}`. The dense model "
        f"answers {right} right with {dense['gmacs']:.4f} GMACs to the first token. Loss: points behind it, with the "
        "standard error of the paired differences. Tokens: in front of the decoder and behind each of its sites, mean. "
        "The last columns are the accuracy by kind of question. The decoder was trained mostly without patches that "
        "show nothing, which may flatter variants that drop them."
    )
    lines = ["# Answers of the question model with fewer image tokens", "", about, "", *verdict(rows, dense)]
    for budget in sorted({row["budget"] for row in rows} - {1.0}, reverse=True):
        lines += ["", f"## {100 * budget:.0f} % of the image tokens", "", *_table(rows, budget, dense, kinds)]
    if left_out:
        lines += ["", "## Left out", "", *(f"- `{name}`: {reason}" for name, reason in left_out.items())]
    return "\n".join(lines) + "\n"


def verdict(rows: Sequence[Row], dense: Row) -> list[str]:
    """Whether the best text-guided method holds at the judged budget, in sentences."""
    there = [row for row in rows if row["budget"] == JUDGED]
    controls = [row for row in there if row["place"] == "control"]
    guided = [row for row in there if row["reads_text"] and UNGUIDED not in row["variant"]]
    prefix = [row for row in guided if row["place"] == "prefix"]
    best, strongest = max(prefix, key=share), max(controls, key=share)
    inside = max((row for row in guided if row["place"] == "decoder"), key=share)
    (lost, lost_error), (ahead, ahead_error) = loss(best, dense), loss(strongest, best)
    inside_lost = "{:.1f} ± {:.1f}".format(*loss(inside, dense))
    held = "at most" if lost <= ALLOWED else "more than"
    than = "less than" if all(share(best) > share(row) for row in controls) else "not less than"
    others = ", ".join(f"{row['variant'].partition(':')[0]} {loss(row, dense)[0]:.1f}" for row in controls)
    return [
        f"At {100 * JUDGED:.0f} % the best text-guided method in front of the decoder is `{best['variant']}`: it loses "
        f"{lost:.1f} ± {lost_error:.1f} points, {held} {ALLOWED:g}, and {than} each control ({others}); against the "
        f"strongest of these it gains {ahead:.1f} ± {ahead_error:.1f}. In the decoder the best is "
        f"`{inside['variant']}`, which sees more tokens in its first layers: it loses {inside_lost}.",
        "",
        CANVASES,
    ]


def _table(rows: Sequence[Row], budget: float, dense: Row, kinds: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(kinds))
    body = []
    for row in sorted((row for row in rows if row["budget"] == budget), key=share, reverse=True):
        lost, spread = loss(row, dense)
        by_kind = [
            sum(mark == "1" for mark, kind in zip(row["right"], kinds, strict=True) if kind == name)
            / list(kinds).count(name)
            for name in names
        ]
        body.append(
            [
                f"`{row['variant']}`",
                row["place"],
                row["tokens"],
                f"{row['gmacs']:.4f}",
                f"{100 * share(row):.1f} ± {100 * error(row):.1f}",
                f"{lost:.1f} ± {spread:.1f}",
                *(f"{100 * value:.0f}" for value in by_kind),
            ]
        )
    return list(table(["variant", "acts", "tokens", "GMACs", "accuracy", "loss", *names], body))
