"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.cli import options as o
from tokensieve.cli.command import with_options
from tokensieve.cli.output import accuracy_table, note, show_table
from tokensieve.cli.run import Request, finish, measure
from tokensieve.measure.plot import pareto


@with_options(Request)
def evaluate(request: Request, verbose: o.Verbose = False) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    Rows are written only where --results-file names a file, with a plot of accuracy against MACs beside it.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes share the images and the figures are
    those of one.
    """
    results = measure(request)
    show_table(accuracy_table(results.rows, f"{request.model}, {results.images} images"))
    if results.file is not None:
        assert results.plot_file is not None
        pareto(results.rows, results.plot_file, f"{request.model} on {results.images} images")
        note(f"written: {results.file}, {results.file.with_suffix('.csv').name}, {results.plot_file.name}")
    finish(results)
