"""What a pixel task is asked for, and the task, the model and the images that follow from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.errors import TokensieveError
from tokensieve.models.load import ImgSize, create
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import TASKS, PixelModel, pixel_model
from tokensieve.pixels.segmentation import Segmentation
from tokensieve.pixels.task import Task
from tokensieve.utils.names import nearest

CLASSIFICATION = "classification"


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """A pixel task as the command line asks for it; None means as the saved model has it, or the default.

    Attributes:
        task: "classification", "segmentation", "depth", or None for that of the saved model.
        head: "linear", "dpt" or "segmenter"; a saved model has its own.
        ignore_index, reduce_zero_label: see ``Segmentation``.
        max_depth, depth_scale, median_scaling, eigen_crop: see ``Depth``.
        slide: slide windows of the model's size over images whose short side is this many pixels.
        stride: pixels between windows; None is two thirds of the window.
    """

    task: str | None = None
    head: str | None = None
    ignore_index: int | None = None
    reduce_zero_label: bool = False
    max_depth: float | None = None
    depth_scale: float | None = None
    median_scaling: bool = False
    eigen_crop: bool = False
    slide: int | None = None
    stride: int | None = None

    def given(self) -> dict[str, Any]:
        """What is set, apart from the task itself."""
        names = [field.name for field in dataclasses.fields(TaskArguments) if field.name != "task"]
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}

    def check(self) -> None:
        """Raise on a task that there is not, or options of another one.

        Raises:
            TokensieveError: names the option.
        """
        known = (CLASSIFICATION, *TASKS)
        if self.task is not None and self.task not in known:
            raise TokensieveError(
                f"unknown task {self.task!r}{nearest(self.task, known)}; known are {', '.join(known)}"
            )
        if self.task == CLASSIFICATION and self.given():
            name = next(iter(self.given())).replace("_", "-")
            raise TokensieveError(f"--{name} is for pixel tasks: give --task {' or '.join(TASKS)}")

    def options(self, kind: type[Task]) -> dict[str, Any]:
        """The options of ``kind`` that are set.

        Raises:
            TokensieveError: one that is set belongs to another task.
        """
        own = {field.name for field in dataclasses.fields(kind)}
        free = {"head", "slide", "stride"}
        foreign = [name for name in self.given() if name not in own | free]
        if foreign:
            raise TokensieveError(f"--{foreign[0].replace('_', '-')} is not for {kind.name}: leave it out")
        return {name: value for name, value in self.given().items() if name in own}


def create_model(
    name: str,
    arguments: TaskArguments,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: ImgSize = None,
) -> nn.Module:
    """The model called ``name`` for a task, as ``measure.model.create`` makes it; a dense one with its head.

    Args:
        name, pretrained, checkpoint, in_chans, img_size: see ``measure.model.create``; weights are the backbone's.
        arguments: the task.
        num_classes: of a classifier's head or of a segmentation.

    Raises:
        TokensieveError: as ``measure.model.create`` and ``with_head``.
    """
    arguments.check()
    dense = arguments.task not in (None, CLASSIFICATION)
    model = create(
        name,
        pretrained=pretrained,
        checkpoint=checkpoint,
        num_classes=None if dense else num_classes,
        in_chans=in_chans,
        img_size=img_size,
    )
    return with_head(model, arguments, num_classes if dense else None)


def with_head(model: nn.Module, arguments: TaskArguments, classes: int | None) -> nn.Module:
    """``model`` as the task wants it: a saved ``PixelModel`` with these options, or a backbone with a fresh head.

    Args:
        model: a classifier or a ``PixelModel``, in evaluation mode.
        arguments: what is asked for; with neither task nor a ``PixelModel`` it stays a classifier.
        classes: of a segmentation.

    Raises:
        TokensieveError: another task than the saved model's, options of another task, or no number of classes.
    """
    arguments.check()
    if isinstance(model, PixelModel):
        own = model.task
        if arguments.task not in (None, own.name):
            raise TokensieveError(
                f"the saved model is for {own.name} and --task asks for {arguments.task}: leave --task out"
            )
        if arguments.head not in (None, model.head.name):
            raise TokensieveError(f"the saved model has a {model.head.name} head: leave --head out")
        if classes is not None:
            raise TokensieveError("the saved model has its own number of classes: leave --num-classes out")
        model.task = dataclasses.replace(own, **arguments.options(type(own)))
        return model
    if arguments.task in (None, CLASSIFICATION):
        if arguments.given():
            name = next(iter(arguments.given())).replace("_", "-")
            raise TokensieveError(f"--{name} is for pixel tasks: give --task {' or '.join(TASKS)}")
        return model
    kind = TASKS[arguments.task]
    options = arguments.options(kind)
    if kind is Segmentation:
        if classes is None:
            raise TokensieveError("segmentation needs the number of classes: give --num-classes")
        task: Task = Segmentation(classes=classes, **options)
    else:
        if classes is not None:
            raise TokensieveError(f"--num-classes is not for {kind.name}: leave it out")
        task = Depth(**options)
    return pixel_model(model, task, arguments.head or "linear")
