"""The work of ``tokensieve bench`` and ``tokensieve eval``: what is measured, as tables and a plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokensieve.cli.options import BenchOptions, EvalOptions
from tokensieve.cli.output import accuracy_table, note, show_table, speed_table
from tokensieve.cli.run import finish, measure
from tokensieve.measure.plot import pareto
from tokensieve.measure.results import Results


def bench(options: BenchOptions) -> None:
    """Measure accuracy and speed, and print both."""
    results_file = options.results_file or default_results_file(options.model)
    results = measure(replace(options, results_file=results_file), batches=options.batches, rounds=options.rounds)
    _show_accuracy(options, results)
    for batch in options.batches:
        if any(speed.batch == batch for row in results.rows for speed in row.speed):
            show_table(speed_table(results.rows, batch))
    where = results.environment
    _plot(options, results, f" ({where['device']}, {results.settings['dtype']}, torch {where['torch']})")
    finish(results)


def evaluate(options: EvalOptions) -> None:
    """Measure accuracy and print it."""
    results = measure(options)
    _show_accuracy(options, results)
    _plot(options, results)
    finish(results)


def _show_accuracy(options: EvalOptions, results: Results) -> None:
    show_table(accuracy_table(results.rows, f"{options.model}, {results.images} images"))


def _plot(options: EvalOptions, results: Results, setting: str = "") -> None:
    """Draw the plot beside the file of the rows, where there is one."""
    if results.file is None or results.plot_file is None:
        return
    pareto(results.rows, results.plot_file, f"{options.model} on {results.images} images{setting}")
    note(f"written: {results.file}, {results.file.with_suffix('.csv').name}, {results.plot_file.name}")


def default_results_file(model: str) -> str:
    """A name in the current folder after the model."""
    return f"tokensieve-{Path(model.replace(':', '-').rstrip('/')).name}.json"
