"""The picture of a measurement: accuracy against measured speed and against MACs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokensieve.measure.results import DENSE, Row
from tokensieve.methods._registry import list_language_methods, list_methods
from tokensieve.utils.files import replacing

MARKERS = "osD^vPX*hp<>"
LEGEND_ROWS, LEGEND_INCHES = 19, 1.5  # what stands beside the panels in one column, and the width of one more


def pareto(
    rows: Sequence[Row],
    file: Path,
    title: str = "",
    batch: int | None = None,
    *,
    rate: str = "images/s",
    cost: str = "GMACs per image",
    unit: str = "",
) -> None:
    """Write a PNG with two panels: top-1 (agreement where there are no labels) against images/s and against GMACs.

    Where nothing was timed there is no panel of images/s.

    Args:
        rows: the measured variants; variants that differ only in a knob are joined by a line.
        file: the PNG to write.
        title: a line above the panels.
        batch: batch size of the speed panel; default the largest measured.
        rate, cost: what ``images_per_second`` and ``gmacs`` of the rows are.
        unit: of the first of the rows' own metrics, where they have some.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second: not before there is something to draw
    from matplotlib.figure import Figure

    labelled = any(row.top1 is not None for row in rows)
    metric = next((name for row in rows for name in row.metrics), None)  # the first leads
    batches = sorted({speed.batch for row in rows for speed in row.speed})
    figure = Figure(figsize=(11 if batches else 8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if batches else 1, sharey=True, squeeze=False)[0]
    macs_panel = panels[-1]
    batch = batch if batch is not None else (batches[-1] if batches else None)

    def quality(row: Row) -> float | None:
        if metric is not None:
            return row.metrics.get(metric)
        return row.top1 if labelled else row.agreement

    def speed_of(row: Row) -> float | None:
        return next((speed.images_per_second for speed in row.speed if speed.batch == batch), None)

    if batches:
        _panel(panels[0], rows, speed_of, quality)
        panels[0].set_xlabel(f"{rate}, measured at batch {batch}")
    _panel(macs_panel, rows, lambda row: row.gmacs, quality)
    macs_panel.set_xlabel(cost)
    own = "top-1 accuracy (%)" if labelled else "agreement with the dense model (%)"
    panels[0].set_ylabel(f"{metric}{unit}" if metric else own)
    handles, labels = macs_panel.get_legend_handles_labels()
    columns = -(-len(labels) // LEGEND_ROWS)
    figure.set_figwidth(figure.get_figwidth() + LEGEND_INCHES * (columns - 1))
    figure.legend(handles, labels, loc="outside right upper", frameon=False, ncols=columns)
    if title:
        figure.suptitle(title, fontsize=11)
    with replacing(file) as beside:
        figure.savefig(beside, dpi=150, format="png")


def _panel(
    axes: Any, rows: Sequence[Row], cost: Callable[[Row], float | None], quality: Callable[[Row], float | None]
) -> None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = cost(row), quality(row)
        if x is not None and y is not None:
            groups.setdefault(series(row.variant), []).append((x, y))
    reduced = [name for name in dict.fromkeys(series(row.variant) for row in rows) if name != DENSE]
    for name, points in groups.items():
        xs, ys = zip(*sorted(points), strict=True)
        if name == DENSE:
            axes.plot(xs, ys, "*", color="black", markersize=13, label=name, zorder=3)
            axes.axhline(ys[0], color="black", linewidth=0.6, alpha=0.4)
            continue
        number = reduced.index(name)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(xs, ys, marker=marker, color=f"C{number % 10}", markersize=6, linewidth=1.3, alpha=0.85, label=name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def series(variant: str) -> str:
    """A spec without its knobs: ``tome:r=4+tosa:keep=0.5:score=own`` lies on the curve ``tome+tosa:score=own``."""
    knobs = "|".join(sorted({str(method.knob) for method in list_methods().values() if method.knob}))
    for name in list_language_methods():  # which are told the number of tokens in place of a share
        variant = re.sub(rf"(^|\+)({name}):tokens=\d+", r"\1\2", variant)
    return re.sub(rf":(?:{knobs})=(?:\[[^\]]*\]|[^:+,]*)", "", variant)
