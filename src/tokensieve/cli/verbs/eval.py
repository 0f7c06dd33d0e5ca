"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import EvalOptions


@verb(EvalOptions, without=("cuda_graph",))
def command(options: EvalOptions) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    Rows are written only where --results-file names a file, with a plot of accuracy against MACs beside it.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes divide the images and the figures are
    those of one.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.cli.specs import swept

    swept(options.method)
    from tokensieve.cli.bench import evaluate

    evaluate(options)
