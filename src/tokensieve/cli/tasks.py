"""What ``eval`` and ``bench`` measure by features of images: zero-shot classification and retrieval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.cli.options import EvalOptions
from tokensieve.data.classes import ClassNames, read_classes
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.data.stream import ImageStream
from tokensieve.errors import TokensieveError
from tokensieve.measure.fidelity import Classification
from tokensieve.measure.judge import Judge
from tokensieve.measure.options import RETRIEVAL
from tokensieve.measure.retrieval import Retrieval
from tokensieve.models.features import ImageFeatures
from tokensieve.models.hub import load_tokenizer
from tokensieve.models.options import ZERO_SHOT, check_templates
from tokensieve.models.source import source_of
from tokensieve.models.zero_shot import ZeroShot, class_features, two_towers
from tokensieve.pixels.model import PixelModel

Variants = dict[str, nn.Module]


class FeatureTask(ABC):
    """A task that makes of models what gives features, and knows its images and how answers are compared."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the figures depend on, JSON-ready."""

    @abstractmethod
    def prepare(self, dense: nn.Module, variants: Mapping[str, nn.Module], device: str) -> tuple[nn.Module, Variants]:
        """The dense model and the variants as the task calls them, on the CPU."""

    @abstractmethod
    def open(self, options: DataOptions, dense: nn.Module) -> tuple[ImageStream, Judge]:
        """The images, and how answers are compared."""


@dataclass(frozen=True)
class ZeroShotTask(FeatureTask):
    """Zero-shot classification. Texts run once; the dense model and every variant have the same features of them.

    Attributes:
        model: its name, beside which the tokenizer lies.
        classes: what is told apart.
        templates: the texts about each.
    """

    model: str
    classes: ClassNames
    templates: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        classes = f"{len(self.classes.names)} ({self.classes.digest})"
        return {"task": ZERO_SHOT, "classes": classes, "templates": list(self.templates)}

    def prepare(self, dense: nn.Module, variants: Mapping[str, nn.Module], device: str) -> tuple[nn.Module, Variants]:
        towers = two_towers(dense)
        tokenizer = load_tokenizer(source_of(self.model))
        text = class_features(towers.to(device), tokenizer, self.classes.names, self.templates)
        return ZeroShot(towers.to("cpu"), text), {name: ZeroShot(model, text) for name, model in variants.items()}

    def open(self, options: DataOptions, dense: nn.Module) -> tuple[ImageStream, Judge]:
        return open_images(options, dense, self.classes), Classification()


@dataclass(frozen=True)
class RetrievalTask(FeatureTask):
    """Retrieval of images by their features.

    Attributes:
        judge: looks them up.
    """

    judge: Retrieval

    def settings(self) -> dict[str, Any]:
        return {"task": RETRIEVAL, "k": list(self.judge.neighbours)}

    def prepare(self, dense: nn.Module, variants: Mapping[str, nn.Module], device: str) -> tuple[nn.Module, Variants]:
        if isinstance(dense, PixelModel):
            raise TokensieveError(
                f"the saved model is for {dense.task.name} and gives no features of whole images: leave --task out, or "
                "give its backbone"
            )
        return ImageFeatures(dense), {name: ImageFeatures(model) for name, model in variants.items()}

    def open(self, options: DataOptions, dense: nn.Module) -> tuple[ImageStream, Judge]:
        images = open_images(options, dense)
        if images.total is not None:
            self.judge.check(images.total)
        return images, self.judge


def task_of(options: EvalOptions) -> FeatureTask | None:
    """The task that ``options`` ask for, where it is one of features.

    Raises:
        TokensieveError: something that it needs is missing, or something is given that it has no use for.
    """
    if options.task == RETRIEVAL:
        return RetrievalTask(Retrieval(options.neighbours))
    if options.task != ZERO_SHOT:
        return None
    if options.classes is None:
        raise TokensieveError(
            "zero-shot classification needs the names of the classes: give --classes FILE with a line for each"
        )
    for name in ("class_map", "num_classes"):
        if getattr(options, name) is not None:
            raise TokensieveError(f"the classes are those of --classes: leave --{name.replace('_', '-')} out")
    check_templates(options.templates)
    return ZeroShotTask(options.model, read_classes(options.classes), options.templates)
