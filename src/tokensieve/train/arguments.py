"""What a training is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tokensieve.models.load import ImgSize
from tokensieve.pixels.arguments import TaskArguments


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TaskArguments):
    """What to train, on what, for how long. Names as in timm's training script; None means as the recipe says.

    What is not listed here is of ``TaskArguments``.

    Attributes:
        model: a timm name, hf-hub:owner/model, or a folder written by ``ts.save`` or by an earlier stage.
        stage: "head", "selectors", "finetune", "recover", "scratch" or "pretrain".
        output: the folder of the run; at its end ``tokensieve.load`` reads it.
        method: spec of the methods; None takes those of a folder, else the recipe's.
        recipe: a recipe's name or a YAML file; None takes the stage's own.
        changes: fields of the recipe to change.
        pretrained, checkpoint, num_classes, in_chans, img_size: the model, see ``measure.model.create``.
        data: image folders; several only without labels.
        dataset, split, class_map, limit, crop_pct, interpolation, mean, std, workers: see ``DataArguments``.
        val_data, val_split, val_limit: images to evaluate on; with ``val_data`` None and a ``dataset``, that one.
        steps: updates in all; None follows the epochs.
        checkpoint_every, log_every: in updates; None for once an epoch, and about a hundred lines.
        evaluate_every: updates between evaluations; None for once an epoch, 0 for the end only.
        metric: "top1", "agreement", of pixel tasks "mIoU" or "delta1" and the like, or "": what the result is chosen
            by and ``patience`` counts on.
        patience: evaluations without a better metric that end the run; 0 for never.
        second_pass: fit selectors to the maps of the reduced network itself.
        seed: of everything random.
        device: "cpu" keeps a single process off its GPU.
        amp, amp_dtype: train under autocast.
        log_with: accelerate's trackers.
        resume: "auto" goes on after the newest checkpoint of ``output``, or starts where there is none.
        force: start anew in a folder that holds a run.
        rounds: timings of each model in the report; 0 for none.
    """

    model: str
    stage: str
    output: str
    method: str | None = None
    recipe: str | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    img_size: ImgSize = None
    data: tuple[str, ...] = ()
    dataset: str = ""
    split: str = "train"
    class_map: str | None = None
    limit: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 4
    val_data: str | None = None
    val_split: str = "validation"
    val_limit: int | None = None
    steps: int | None = None
    checkpoint_every: int | None = None
    log_every: int | None = None
    evaluate_every: int | None = None
    metric: str = ""
    patience: int = 0
    second_pass: bool = False
    seed: int = 0
    device: str = "auto"
    amp: bool = False
    amp_dtype: str = "bfloat16"
    log_with: tuple[str, ...] = ()
    resume: str | None = None
    force: bool = False
    rounds: int = 5

    def settings(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        free = ("output", "workers", "log_with", "log_every", "checkpoint_every", "resume", "force", "rounds")
        unset = {field.name for field in dataclasses.fields(TaskArguments) if not getattr(self, field.name)}
        return {n: value for n, value in dataclasses.asdict(self).items() if n not in free and n not in unset}
