"""The end of a run: the result beside its dense teacher, the curves, and a page that shows both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tokensieve.data.stream import ImageStream
from tokensieve.engine.apply import applied, is_applied
from tokensieve.measure.benchmark import bench
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import Results, Row
from tokensieve.methods._spec import spell
from tokensieve.utils.files import replacing

BATCHES = (1, 16)  # batch sizes that the result is timed at


def measure(
    dense: nn.Module,
    before: nn.Module | None,
    after: nn.Module | None,
    images: ImageStream,
    folder: Path,
    settings: dict[str, Any],
    command: str,
    rounds: int,
    progress: Progress | None,
) -> Results:
    """The bench table of the dense teacher, the model before training and the result; goes to ``bench.json``.

    Args:
        dense, before, after: the models, in evaluation mode on the CPU; the dense one alone where the others are None.
        images: what to measure on.
        folder: of the run.
        settings, command: what the figures depend on.
        rounds: timings of each model; 0 for none.
        progress: is told how far it got.
    """
    results = Results(settings, command, file=folder / "bench.json")
    variants = {}
    if before is not None and after is not None:
        name = spell(applied(after)) if is_applied(after) else "no method"
        variants = {f"{name}, before": before, f"{name}, trained": after}
    return bench(dense, variants, images, results, batches=BATCHES if rounds else (), rounds=rounds, progress=progress)


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """The figures of the log over the steps: losses above, evaluations below where there are any."""
    from matplotlib.figure import Figure

    losses = [key for key in _keys(records) if not key.startswith("val/") and "/" not in key and key not in _NOT_LOSSES]
    figures = [key for key in _keys(records) if key.startswith("val/")]
    rows = 2 if figures else 1
    figure = Figure(figsize=(7, 3.2 * rows), layout="constrained")
    for place, (keys, label) in enumerate([(losses, "loss"), (figures, "validation")][:rows]):
        axes = figure.add_subplot(rows, 1, place + 1)
        for key in keys:
            points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
            axes.plot(*zip(*points, strict=True), label=key, marker="o" if len(points) < 20 else None, markersize=3)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)


_NOT_LOSSES = {"step", "epoch", "lr", "strength", "images_per_second"}


def _keys(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def write_page(path: Path, title: str, results: Results, facts: dict[str, Any], note: str) -> None:
    """The report as Markdown: what was done, the table, the curves."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    header = ["variant", "GMACs", "F", *(results.metrics or ["top-1", "top-5", "agreement", "KL"])]
    cells = [[row.variant, _cell(row.gmacs, 3), _cell(row.F), *_figures(row, results.metrics)] for row in results.rows]
    batches = sorted({speed.batch for row in results.rows for speed in row.speed})
    for batch in batches:
        header += [f"images/s at {batch}", f"S at {batch}"]
        for row, line in zip(results.rows, cells, strict=True):
            speed = next(speed for speed in row.speed if speed.batch == batch)
            line += [f"{speed.images_per_second:.1f}", f"{speed.S:.2f}"]
    lines += [f"On {results.images} images{note}:", "", _row(header), _row(["---"] * len(header)), *map(_row, cells)]
    lines += ["", "![curves](curves.png)", ""]
    with replacing(path) as beside:
        beside.write_text("\n".join(lines), encoding="utf-8")


def _figures(row: Row, metrics: Sequence[str]) -> list[str]:
    if metrics:
        return [_cell(row.metrics.get(name), 4) for name in metrics]
    return [*(_cell(value) for value in (row.top1, row.top5, row.agreement)), _cell(row.kl, 4)]


def _cell(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
