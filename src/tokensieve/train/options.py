"""What a training is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from tokensieve.data.options import SourceOptions
from tokensieve.errors import TokensieveError
from tokensieve.models.options import DeviceOptions, ModelOptions, PrecisionOptions
from tokensieve.pixels.options import PIXEL_TASKS, TaskOptions
from tokensieve.train.recipe import Recipe
from tokensieve.utils.options import Changes, Option

Stage = Literal["head", "selectors", "finetune", "recover", "scratch", "pretrain"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def stage_called(name: str) -> Stage:
    """The stage of this name.

    Raises:
        TokensieveError: there is none; lists the stages.
    """
    known = f"{', '.join(STAGES[:-1])} or {STAGES[-1]}"
    if not name:
        raise TokensieveError(f"what is to be trained? Give --stage {known}")
    for stage in STAGES:
        if stage == name:
            return stage
    raise TokensieveError(f"unknown stage {name!r}: give {known}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TaskOptions, SourceOptions, ModelOptions, PrecisionOptions, DeviceOptions):
    """What to train, on what, for how long. Names as in timm's training script; None means as the recipe says.

    Raises:
        TokensieveError: there is no such stage, or none is given and the task has none of its own.
    """

    output: Annotated[
        str, Option("Folder of the run and its result.", names=("--output", "-o"), metavar="DIR")
    ]  # at the end ``tokensieve.load`` reads it
    method: Annotated[
        str | None,
        Option("Methods; default those of a saved MODEL or the recipe's.", names=("--method", "-m"), metavar="SPEC"),
    ] = None
    stage: Annotated[
        str,
        Option("head, selectors, finetune, recover (no labels), scratch or pretrain. Default of pixel tasks: head."),
    ] = ""
    data: Annotated[
        tuple[str, ...],
        Option(
            "Images to train on; repeatable where labels are not used.",
            names=("--data", "--data-dir"),
            metavar="FOLDER",
        ),
    ] = ()
    split: Annotated[str, Option("Split to train on.")] = "train"
    recipe: Annotated[str | None, Option("Recipe, or a YAML file. Default: the stage's own.", metavar="NAME")] = None
    changes: Annotated[dict[str, Any], Changes(Recipe)] = dataclasses.field(default_factory=dict)
    val_data: Annotated[str | None, Option("Images to evaluate on, one sub-folder a class.", metavar="FOLDER")] = (
        None  # with a ``dataset`` that one
    )
    val_split: Annotated[str, Option("Split to evaluate on.")] = "validation"
    val_limit: Annotated[int | None, Option("Evaluate on this many images.", min=1)] = None
    steps: Annotated[int | None, Option("Updates in all, instead of --epochs.", min=1)] = None
    checkpoint_every: Annotated[int | None, Option("Updates between checkpoints. Default: an epoch.", min=1)] = None
    log_every: Annotated[int | None, Option("Updates between lines of the log. Default: 100 lines.", min=1)] = None
    evaluate_every: Annotated[int | None, Option("Updates between evaluations. Default: an epoch.", min=0)] = (
        None  # 0 for the end only
    )
    metric: Annotated[
        str,
        Option("top1, agreement; of pixel tasks mIoU, delta1: keep the weights that are best by it. Default: last."),
    ] = ""
    patience: Annotated[int, Option("Stop after this many evaluations without a better metric.", min=0)] = (
        0  # 0 for never
    )
    second_pass: Annotated[bool, Option("Fit selectors to the reduced network's own maps (selectors only).")] = False
    seed: Annotated[int, Option("Of everything random.", min=0)] = 0
    device: Annotated[str, Option("auto, or cpu to leave a GPU alone.")] = "auto"
    log_with: Annotated[tuple[str, ...], Option("Tracker of accelerate, tensorboard or wandb; repeatable.")] = ()
    resume: Annotated[str | None, Option("auto: go on after the newest checkpoint in DIR.", metavar="auto")] = (
        None  # or start where there is none
    )
    force: Annotated[bool, Option("Start anew in a folder that holds a run.")] = False
    rounds: Annotated[int, Option("Timings of each model in the report; 0: none.", min=0)] = 5

    def __post_init__(self) -> None:
        if not self.stage and self.task in PIXEL_TASKS:
            object.__setattr__(self, "stage", "head")
        stage_called(self.stage)

    def settings(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        free = ("output", "workers", "log_with", "log_every", "checkpoint_every", "resume", "force", "rounds")
        unset = {field.name for field in dataclasses.fields(TaskOptions) if not getattr(self, field.name)}
        return {n: value for n, value in dataclasses.asdict(self).items() if n not in free and n not in unset}
