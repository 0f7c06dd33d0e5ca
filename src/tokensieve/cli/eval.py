"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.cli import options as o
from tokensieve.cli.command import with_options
from tokensieve.cli.output import accuracy_table, note, show_table
from tokensieve.cli.run import Request, finish, measure


@with_options(Request)
def evaluate(request: Request, verbose: o.Verbose = False) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    Rows are written only where --results-file names a file.
    """
    results = measure(request)
    show_table(accuracy_table(results.rows, f"{request.model}, {results.images} images"))
    if results.file is not None:
        note(f"written: {results.file}, {results.file.with_suffix('.csv').name}")
    finish(results)
