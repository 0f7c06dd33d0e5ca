"""The work of ``tokensieve bench`` and ``tokensieve eval``: what is measured, as tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from tokensieve.cli.options import BenchOptions, EvalOptions
from tokensieve.cli.output import accuracy_table, note, show_table, speed_table
from tokensieve.cli.run import finish, measure
from tokensieve.measure.plot import pareto
from tokensieve.measure.results import Results, Row


def bench(options: BenchOptions) -> None:
    """Measure accuracy and speed, and print both."""
    results_file = options.results_file or default_results_file(options.model)
    results = measure(replace(options, results_file=results_file), batches=options.batches, rounds=options.rounds)
    _show_accuracy(options, results)
    show_speeds(results, options.batches, speed_table)
    _plot(options, results, where_measured(results))
    finish(results)


def evaluate(options: EvalOptions) -> None:
    """Measure accuracy and print it."""
    results = measure(options)
    _show_accuracy(options, results)
    _plot(options, results)
    finish(results)


def _show_accuracy(options: EvalOptions, results: Results) -> None:
    show_table(accuracy_table(results.rows, f"{options.model}, {results.images} images"))


def show_speeds(results: Results, batches: Iterable[int], table: Callable[[Sequence[Row], int], Table]) -> None:
    """Print a table of each batch size that was timed."""
    for batch in batches:
        if any(speed.batch == batch for row in results.rows for speed in row.speed):
            show_table(table(results.rows, batch))


def where_measured(results: Results) -> str:
    """What speed depends on, for the title of a plot."""
    where = results.environment
    return f" ({where['device']}, {results.settings['dtype']}, torch {where['torch']})"


def _plot(options: EvalOptions, results: Results, setting: str = "") -> None:
    plot_beside(results, f"{options.model} on {results.images} images{setting}")


def plot_beside(results: Results, title: str, **labels: Any) -> None:
    """Draw the plot beside the file of the rows, where there is one; ``labels`` as ``pareto`` takes them."""
    if results.file is None or results.plot_file is None or not results.rows:
        return
    pareto(results.rows, results.plot_file, title, **labels)
    note(f"written: {results.file}, {results.file.with_suffix('.csv').name}, {results.plot_file.name}")


def default_results_file(model: str) -> str:
    """A name in the current folder after the model."""
    return f"tokensieve-{Path(model.replace(':', '-').rstrip('/')).name}.json"
