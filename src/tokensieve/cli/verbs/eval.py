"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import EvalOptions


@verb(EvalOptions, without=("cuda_graph",))
def command(options: EvalOptions) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    --task zeroshot compares images with texts that name the classes, by a model with two towers; the text tower stays
    as it is. --task retrieval looks every image up by the features of each variant among those of the dense model:
    recall@k is the share of images that find one of their class, own@k the same among the variant's own features,
    same@k the share that find themselves.

    Rows are written only where --results-file names a file, with a plot of accuracy against MACs beside it.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes divide the images and the figures are
    those of one.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.cli.specs import swept

    swept(options.method)
    from tokensieve.cli.bench import evaluate

    evaluate(options)
