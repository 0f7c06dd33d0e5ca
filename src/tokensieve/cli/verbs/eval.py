"""``tokensieve eval``: the accuracy part of ``bench`` alone."""

from __future__ import annotations

from tokensieve.answers.options import ANSWER
from tokensieve.cli.command import verb
from tokensieve.cli.options import EvalOptions


@verb(EvalOptions, without=("cuda_graph",))
def command(options: EvalOptions) -> None:
    """Accuracy of the dense model and of every variant, agreement between them, and MACs; nothing is timed.

    --task zeroshot compares images with texts that name the classes, by a model with two towers; the text tower stays
    as it is. --task retrieval looks every image up by the features of each variant among those of the dense model:
    recall@k is the share of images that find one of their class, own@k the same among the variant's own features,
    same@k the share that find themselves. --task answer asks a vision-language model the questions in a folder
    (questions.jsonl, lines with image, question and answer; or questions.csv): accuracy, agreement with the dense
    model, MACs of tower, projector, prefill and a decoded token, image tokens and bytes of the cache; beside every
    variant come three controls that keep as many image tokens: prefix-random, prefix-grid and downsample.

    Rows are written only where --results-file names a file, with a plot of accuracy against MACs beside it.

    Under accelerate launch (--multi_gpu on CPUs too) or torchrun the processes divide the images and the figures are
    those of one.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.cli.specs import check_specs

    check_specs(options.method, placed=options.task == ANSWER)
    if options.task == ANSWER:
        from tokensieve.cli.answers import evaluate_answers

        evaluate_answers(options)
        return
    from tokensieve.cli.bench import evaluate

    evaluate(options)
