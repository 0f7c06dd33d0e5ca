"""What each verb is asked for, where that is more than one room's options: declarations alone, composed by deriving.

Arguments and options of a verb come in the order of the classes that it derives from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokensieve.answers.options import ANSWER, AnswerOptions
from tokensieve.data.options import DataOptions, TransformOptions
from tokensieve.errors import TokensieveError
from tokensieve.export.options import ExportOptions
from tokensieve.measure.options import (
    RETRIEVAL,
    MeasureOptions,
    OverwriteOptions,
    RetrievalOptions,
    TimingOptions,
    VariantOptions,
)
from tokensieve.models.options import ZERO_SHOT, DeviceOptions, ModelOptions, RuntimeOptions, ZeroShotOptions
from tokensieve.pixels.options import CLASSIFICATION, PIXEL_TASKS, TaskOptions
from tokensieve.plan.options import PlanOptions
from tokensieve.show.options import ShowOptions
from tokensieve.utils.names import nearest
from tokensieve.utils.options import Option

TASKS = (CLASSIFICATION, *PIXEL_TASKS, ZERO_SHOT, RETRIEVAL, ANSWER)

OWN = {ZERO_SHOT: ("classes", "template"), RETRIEVAL: ("k",), ANSWER: ("max_new_tokens", "text_encoder")}


@dataclass(frozen=True, kw_only=True)
class EvalTaskOptions(TaskOptions, ZeroShotOptions, RetrievalOptions, AnswerOptions):
    """A task and its options; besides those that a model is made for, two that compare features of images, and one of
    vision-language models, which answer questions."""

    task: Annotated[
        str | None,
        Option(
            "classification, segmentation, depth, zeroshot, retrieval or answer. Default: the saved model's, else "
            "classification."
        ),
    ] = None

    def check_task(self) -> None:
        """Raise on a task that there is not, or options of another one.

        Raises:
            TokensieveError: names the option.
        """
        if self.task is not None and self.task not in TASKS:
            raise TokensieveError(
                f"unknown task {self.task!r}{nearest(self.task, TASKS)}; known are {', '.join(TASKS)}"
            )
        for task, names in OWN.items():
            given = next((name.replace("_", "-") for name in names if getattr(self, name)), None)
            if self.task != task and given is not None:
                raise TokensieveError(f"--{given} is for --task {task}: give that, or leave --{given} out")
        if self.task not in OWN:
            super().check_task()
        elif self.given():
            name = next(iter(self.given())).replace("_", "-")
            raise TokensieveError(f"--{name} is for pixel tasks: give --task {' or '.join(PIXEL_TASKS)}")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(
    VariantOptions, DataOptions, ModelOptions, RuntimeOptions, EvalTaskOptions, MeasureOptions, OverwriteOptions
):
    """What is measured of which model on which images, and where the rows go."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(EvalOptions, TimingOptions):
    """What ``eval`` measures, and what is timed."""


@dataclass(frozen=True, kw_only=True)
class ExportedModelOptions(ExportOptions, ModelOptions, TimingOptions):
    """Which model is exported to what, and how it is timed."""


@dataclass(frozen=True, kw_only=True)
class PlannedModelOptions(PlanOptions, ModelOptions, RuntimeOptions, OverwriteOptions):
    """Which model becomes faster by which method, and how both run."""


@dataclass(frozen=True, kw_only=True)
class ShownModelOptions(
    ModelOptions,
    VariantOptions,
    ShowOptions,
    TaskOptions,
    TransformOptions,
    AnswerOptions,
    DeviceOptions,
    OverwriteOptions,
):
    """Which methods are shown at work in which model on which images."""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Which method is shown."""

    name: Annotated[str | None, Option("Show the card and options of one method.", metavar="[NAME]", argument=True)] = (
        None
    )
