"""The work of ``tokensieve train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokensieve.cli.output import accuracy_table, errors, new_table, note, show_table, speed_table
from tokensieve.train import prepare, report, run
from tokensieve.train.loop import Told
from tokensieve.train.options import TrainOptions
from tokensieve.train.prepare import Prepared


def train(options: TrainOptions, dry_run: bool) -> None:
    """Train and print the figures, or print the plan."""
    if dry_run:
        prepared = prepare.prepare(options)
        if prepared.accelerator.is_main_process:
            _show_plan(prepared, options)
        return
    with _progress(options.stage) as told:
        results = run.train(options, on_step=told)
    if results is None:  # not the main process
        return
    show_table(accuracy_table(results.rows, f"{options.model}, {options.stage}, {results.images} images"))
    for batch in report.BATCHES if options.rounds else ():
        show_table(speed_table(results.rows, batch))
    note(f"written: {options.output} (tokensieve.load reads it), with report.md, curves.png, log.csv, bench.json")


@contextmanager
def _progress(stage: str) -> Iterator[Callable[[Told], None]]:
    """A bar on standard error while the block trains, and what is called to move it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(stage, total=None, figures="")

        def told(state: Told) -> None:
            figures = f"loss {state.loss:.4f}, {state.images_per_second:.1f} images/s"
            bar.update(task, total=state.steps, completed=state.step, figures=figures)

        yield told


def _show_plan(prepared: Prepared, options: TrainOptions) -> None:
    """The plan, the MACs and the parameter groups on standard output."""
    for line in prepared.notes:
        note(line)
    table = new_table(f"{options.model}: {options.stage}, to {options.output}")
    table.add_column("what")
    table.add_column("plan", overflow="fold")
    for name, value in prepared.summary().items():
        table.add_row(name, value)
    show_table(table)
    groups = new_table("Parameter groups")
    for name in ("group", "tensors", "numbers", "learning rate", "weight decay"):
        groups.add_column(name, justify="right")
    for number, (tensors, numbers, rate, decay) in enumerate(prepared.parameter_groups()):
        groups.add_row(str(number), str(tensors), f"{numbers:,}", f"{rate:.3g}", f"{decay:.3g}")
    show_table(groups)
