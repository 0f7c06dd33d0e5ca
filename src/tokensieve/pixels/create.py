"""The model that is asked for, with the head of its task."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from tokensieve.errors import TokensieveError
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import TASKS, PixelModel, pixel_model
from tokensieve.pixels.options import CLASSIFICATION, TaskOptions
from tokensieve.pixels.segmentation import Segmentation
from tokensieve.pixels.task import Task


def task_options(options: TaskOptions, kind: type[Task]) -> dict[str, Any]:
    """The options of ``kind`` that are set.

    Raises:
        TokensieveError: one that is set belongs to another task.
    """
    own = {field.name for field in dataclasses.fields(kind)}
    free = {"head", "slide", "stride"}
    foreign = [name for name in options.given() if name not in own | free]
    if foreign:
        raise TokensieveError(f"--{foreign[0].replace('_', '-')} is not for {kind.name}: leave it out")
    return {name: value for name, value in options.given().items() if name in own}


def create_model(options: ModelOptions, task: TaskOptions) -> nn.Module:
    """The model that ``options`` name, for a task, as ``models.load.create`` makes it; a dense one with its head.

    Args:
        options: the model; weights are the backbone's, ``num_classes`` is of a classifier's head or of a segmentation.
        task: the task.

    Raises:
        TokensieveError: as ``models.load.create`` and ``with_head``.
    """
    task.check_task()
    pixels = task.task not in (None, CLASSIFICATION)
    model = create(dataclasses.replace(options, num_classes=None) if pixels else options)
    return with_head(model, task, options.num_classes if pixels else None)


def with_head(model: nn.Module, options: TaskOptions, classes: int | None) -> nn.Module:
    """``model`` as the task wants it: a saved ``PixelModel`` with these options, or a backbone with a fresh head.

    Args:
        model: a classifier or a ``PixelModel``, in evaluation mode.
        options: what is asked for; with neither task nor a ``PixelModel`` it stays a classifier.
        classes: of a segmentation.

    Raises:
        TokensieveError: another task than the saved model's, options of another task, or no number of classes.
    """
    options.check_task()
    if isinstance(model, PixelModel):
        own = model.task
        if options.task not in (None, own.name):
            raise TokensieveError(
                f"the saved model is for {own.name} and --task asks for {options.task}: leave --task out"
            )
        if options.head not in (None, model.head.name):
            raise TokensieveError(f"the saved model has a {model.head.name} head: leave --head out")
        if classes is not None:
            raise TokensieveError("the saved model has its own number of classes: leave --num-classes out")
        model.task = dataclasses.replace(own, **task_options(options, type(own)))
        return model
    if options.task in (None, CLASSIFICATION):
        if options.given():
            name = next(iter(options.given())).replace("_", "-")
            raise TokensieveError(f"--{name} is for pixel tasks: give --task {' or '.join(TASKS)}")
        return model
    kind = TASKS[options.task]
    own_options = task_options(options, kind)
    if kind is Segmentation:
        if classes is None:
            raise TokensieveError("segmentation needs the number of classes: give --num-classes")
        task: Task = Segmentation(classes=classes, **own_options)
    else:
        if classes is not None:
            raise TokensieveError(f"--num-classes is not for {kind.name}: leave it out")
        task = Depth(**own_options)
    return pixel_model(model, task, options.head or "linear")
