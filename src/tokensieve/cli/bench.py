"""``tokensieve bench``: the dense model, every variant and its oracle; one table, one picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from tokensieve.cli import options as o
from tokensieve.cli.command import with_options
from tokensieve.cli.output import accuracy_table, note, show_table, speed_table
from tokensieve.cli.run import Request, default_results_file, finish, measure
from tokensieve.measure.plot import pareto


@with_options(Request)
def bench(
    request: Request,
    speed_batch_size: Annotated[
        list[int] | None,
        typer.Option("--speed-batch-size", min=1, help="Batch size to time; repeatable. Default: 1 and 16."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of each model.")] = 10,
    cuda_graph: o.CudaGraph = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure dense model, reduced variants and their oracles in one run: MACs, accuracy, agreement, speed, memory.

    S is the measured speed-up over the dense model, F what the MACs promise, O that of the oracle (the same token
    counts with a selection that costs nothing). Rows go to JSON and CSV as they are done, a Pareto plot beside them.
    """
    request = replace(request, results_file=request.results_file or default_results_file(request.model))
    batches = tuple(dict.fromkeys(speed_batch_size or (1, 16)))
    results = measure(request, batches=batches, rounds=rounds, cuda_graph=cuda_graph)
    show_table(accuracy_table(results.rows, f"{request.model}, {results.images} images"))
    for batch in batches:
        if any(speed.batch == batch for row in results.rows for speed in row.speed):
            show_table(speed_table(results.rows, batch))
    assert results.file is not None and results.plot_file is not None
    setting = f"{results.environment['device']}, {results.settings['dtype']}, torch {results.environment['torch']}"
    pareto(results.rows, results.plot_file, f"{request.model} on {results.images} images ({setting})")
    note(f"written: {results.file}, {results.file.with_suffix('.csv').name}, {results.plot_file.name}")
    finish(results)
