"""What the commands print: tables on standard output, progress and notes on standard error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from tokensieve.measure.progress import Lines, Progress
from tokensieve.measure.results import DENSE, Row

errors = Console(stderr=True)


def note(text: str) -> None:
    """A line on standard error."""
    errors.print(escape(text), style="dim", soft_wrap=True, highlight=False)


def show_table(table: Table) -> None:
    """A table on standard output, never cut off where the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def new_table(title: str | None = None) -> Table:
    """An empty table in the house style."""
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)


class Bars:
    """Progress bars, one a phase (``tokensieve.measure.progress.Progress``)."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, what: str, total: int | None) -> None:
        """A phase begins; the one before is complete and its bar goes."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(escape(what), total=total)

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""
        if self._task is not None:
            self._bars.advance(self._task, steps)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress on standard error while the block runs: bars on a terminal, elsewhere a line every few seconds."""
    if not errors.is_terminal:
        yield Lines(note)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=errors, transient=True) as bars:
        yield Bars(bars)


def accuracy_table(rows: Sequence[Row], title: str) -> Table:
    """MACs, accuracy and agreement of every variant."""
    table = new_table(title)
    table.add_column("variant", overflow="fold")
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    for name in ("GMACs", "F", *(metrics or ("top-1", "top-5", "agree", "KL"))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_accuracy_cells(row, metrics), style="bold" if row.variant == DENSE else None)
    return table


def speed_table(rows: Sequence[Row], batch: int) -> Table:
    """Speed of every variant at one batch size, with its accuracy beside it."""
    table = new_table(f"Speed at batch {batch}")
    table.add_column("variant", overflow="fold")
    lead = next((name for row in rows for name in row.metrics), None)
    for name in (lead or "top-1", "images/s", "S", "F", "O", "S/F", "S/O", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        speed = next((s for s in row.speed if s.batch == batch), None)
        if speed is None:
            continue
        table.add_row(
            escape(row.variant),
            _number(row.top1, 1) if lead is None else metric_cell(row.metrics.get(lead)),
            f"{speed.images_per_second:.1f}" + (" ~" if speed.noisy else ""),
            f"{speed.S:.2f}",
            f"{row.F:.2f}",
            _number(speed.O, 2),
            f"{speed.S_over_F:.2f}",
            _number(speed.S_over_O, 2),
            f"{speed.peak_memory / 1e6:.1f}",
            style="bold" if row.variant == DENSE else None,
        )
    notes = [
        "S speed-up over dense, F dense MACs over these, O speed-up of the oracle: the same counts, chosen for free"
    ]
    if any(s.noisy for row in rows for s in row.speed if s.batch == batch):
        notes.append("~ noisy: the rounds lie more than 10 % apart; close other programs, or use more --rounds")
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def _accuracy_cells(row: Row, metrics: Sequence[str]) -> list[str]:
    cost = [escape(row.variant), f"{row.gmacs:.3f}", f"{row.F:.2f}"]
    if metrics:
        return cost + [metric_cell(row.metrics.get(name)) for name in metrics]
    return [
        *cost,
        _number(row.top1, 2),
        _number(row.top5, 2),
        _number(row.agreement, 2),
        _number(row.kl, 4),
    ]


def metric_cell(value: float | None) -> str:
    """A figure of a pixel task, with four digits or more: percent, metres or a share."""
    return "–" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
