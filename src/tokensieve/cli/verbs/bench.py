"""``tokensieve bench``: the dense model, every variant and its oracle; one table, one picture."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import BenchOptions


@verb(BenchOptions)
def command(options: BenchOptions) -> None:
    """Measure dense model, reduced variants and their oracles in one run: MACs, accuracy, agreement, speed, memory.

    S is the measured speed-up over the dense model, F what the MACs promise, O that of the oracle (the same token
    counts with a selection that costs nothing). Rows go to JSON and CSV as they are done, a Pareto plot beside them.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes divide the images and the figures are
    those of one; the main process alone is timed.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.cli.specs import swept

    swept(options.method)
    from tokensieve.cli.bench import bench

    bench(options)
