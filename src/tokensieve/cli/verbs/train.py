"""``tokensieve train``: selectors, fine-tuning, label-free recovery, from scratch, pre-training; on any devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokensieve.cli.command import verb
from tokensieve.errors import TokensieveError
from tokensieve.train.options import TrainOptions
from tokensieve.utils.options import Option, values_of

MEASURED = ("median_scaling", "eigen_crop", "slide", "stride")  # of pixel tasks when they are measured by eval


@dataclass(frozen=True, kw_only=True)
class TrainCommandOptions(TrainOptions):
    """A training, and whether it is only planned."""

    dry_run: Annotated[bool, Option("Show plan, MACs and parameter groups; train nothing.")] = False


@verb(TrainCommandOptions, without=MEASURED)
def command(options: TrainCommandOptions) -> None:
    """Train what a method learns, or the model around it; DIR ends with a model that tokensieve.load(DIR) reads.

    head: that of a pixel task, on a frozen backbone. selectors: freeze the model, fit ToSA's selectors to attention
    maps, without labels. finetune: task loss and distillation from the dense model. recover: the dense model teaches
    the reduced one, without labels. scratch: from random weights. pretrain: a plain ViT without labels, by DenseDINO.
    Under accelerate launch on many devices. DIR gets checkpoints, log.csv, log.jsonl, curves.png, bench.json and
    report.md.

    Example: tokensieve train deit_tiny_patch16_224 --pretrained --stage selectors --method tosa --data PHOTOS -o tosa
    """
    # Imported here and in this order, so that what is mistyped is told before timm and accelerate are loaded.
    if options.method:
        from tokensieve.methods._spec import parse

        parse(options.method)
    try:
        from tokensieve.cli.train import train
    except ModuleNotFoundError as error:
        raise TokensieveError(f"training needs {error.name}: pip install 'tokensieve[train]'") from error
    train(TrainOptions(**values_of(options, TrainOptions)), options.dry_run)
