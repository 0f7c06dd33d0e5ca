"""``tokensieve bench``: the dense model, every variant and its oracle; one table, one picture."""

from __future__ import annotations

from tokensieve.answers.options import ANSWER
from tokensieve.cli.command import verb
from tokensieve.cli.options import BenchOptions


@verb(BenchOptions)
def command(options: BenchOptions) -> None:
    """Measure dense model, reduced variants and their oracles in one run: MACs, accuracy, agreement, speed, memory.

    S is the measured speed-up over the dense model, F what the MACs promise, O that of the oracle (the same token
    counts with a selection that costs nothing). Rows go to JSON and CSV as they are done, a Pareto plot beside them.

    --task answer asks a vision-language model the questions in a folder, as eval does, and times its first token and
    those behind it; the controls that keep as many image tokens stand in the place of oracles.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes divide the images and the figures are
    those of one; the main process alone is timed.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.cli.specs import check_specs

    check_specs(options.method, placed=options.task == ANSWER)
    if options.task == ANSWER:
        from tokensieve.cli.answers import bench_answers

        bench_answers(options)
        return
    from tokensieve.cli.bench import bench

    bench(options)
