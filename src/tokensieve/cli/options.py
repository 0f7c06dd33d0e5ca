"""What each verb is asked for, where that is more than one room's options: declarations alone, composed by deriving.

Arguments and options of a verb come in the order of the classes that it derives from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokensieve.data.options import DataOptions, TransformOptions
from tokensieve.export.options import ExportOptions
from tokensieve.measure.options import MeasureOptions, OverwriteOptions, TimingOptions, VariantOptions
from tokensieve.models.options import DeviceOptions, ModelOptions, RuntimeOptions
from tokensieve.pixels.options import TaskOptions
from tokensieve.plan.options import PlanOptions
from tokensieve.show.options import ShowOptions
from tokensieve.utils.options import Option


@dataclass(frozen=True, kw_only=True)
class EvalOptions(
    VariantOptions, DataOptions, ModelOptions, RuntimeOptions, TaskOptions, MeasureOptions, OverwriteOptions
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
    ModelOptions, VariantOptions, ShowOptions, TaskOptions, TransformOptions, DeviceOptions, OverwriteOptions
):
    """Which methods are shown at work in which model on which images."""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Which method is shown."""

    name: Annotated[str | None, Option("Show the card and options of one method.", metavar="[NAME]", argument=True)] = (
        None
    )
