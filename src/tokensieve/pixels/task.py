"""What a pixel task is: what its targets look like, what is learned, what is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.measure.judge import Judge, Meters

Answers = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A pixel task with its options; saved with the head that was trained for it.

    Class attributes:
        name: what the command line calls it.
        folders: what the folder of targets may be called.
        endings: of the files in it.
        crops: whether its targets stay right where an image is cropped and enlarged.
        rising: the metrics of which more is better, which a training can choose its weights by.
    """

    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    endings: ClassVar[tuple[str, ...]]
    crops: ClassVar[bool] = True
    rising: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def channels(self) -> int:
        """K, what a head gives for every pixel."""

    @property
    @abstractmethod
    def counts(self) -> str:
        """Which pixels of a target count, in words, and the options that say so."""

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Which pixels of a target count, bool."""

    @abstractmethod
    def activate(self, outputs: Tensor) -> Tensor:
        """What a head gives, (B, K, H, W), as what the model answers: logits, or depth in metres."""

    @abstractmethod
    def target(self, raw: NDArray[Any], name: str) -> Tensor:
        """A target as it is stored, (H, W) or (H, W, 1), as what is learned, (H, W).

        Raises:
            TokensieveError: it is no target of this task; says which of its values and what ``name`` is.
        """

    @abstractmethod
    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of (B, K, H, W) answers for (B, H, W) targets; 0 where no pixel is valid."""

    @abstractmethod
    def decide(self, answer: Tensor) -> Tensor:
        """(H, W), what is compared with a target, from the answer (K, H, W) for one image."""

    @abstractmethod
    def meters(self) -> Meters:
        """Fresh meters, fed with lists of ``decide``'s and of targets."""

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready."""
        return {"name": self.name, "options": asdict(self)}


@dataclass(frozen=True)
class PixelOutcome:
    """What ``bench`` writes of a ``PixelModel``.

    Attributes:
        images: how many there were.
        metrics: by name, in the order of the table.
    """

    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class PixelJudge(Judge):
    """Compares predictions of pixels at the size of their targets.

    Attributes:
        task: what is predicted.
        wrap: makes of a model what is called on images, a sliding window for example; default the model itself.
    """

    task: Task
    wrap: Callable[[Callable[[Tensor], Any]], Callable[[Tensor], Any]] | None = None

    def answer(self, model: Callable[[Tensor], Any], images: Tensor, targets: Sequence[Tensor] | Tensor) -> Answers:
        """What the model decides for every image, at its target's size, on the CPU."""
        with torch.inference_mode():
            answers = (model if self.wrap is None else self.wrap(model))(images).float().cpu()
            return [
                self.task.decide(resized(answer, target.shape if target.dim() == 2 else images.shape[-2:]))
                for answer, target in zip(answers, targets, strict=True)
            ]

    def meters(self, answers: Answers) -> Meters:
        return self.task.meters()


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (K, h, w) at another size (H, W), bilinear."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps.unsqueeze(0), size=tuple(size), mode="bilinear", align_corners=False)[0]


def plane(raw: NDArray[Any], name: str) -> NDArray[Any]:
    """A stored target as (H, W).

    Raises:
        TokensieveError: it has several channels.
    """
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise TokensieveError(
            f"the target {name} has shape {raw.shape}: expected one value for each pixel, not a colour picture"
        )
    return np.ascontiguousarray(raw)


def from_dict(kind: type[Task], options: dict[str, Any]) -> Task:
    """The task of a saved model.

    Raises:
        TokensieveError: an option it does not have.
    """
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TokensieveError(f"{kind.name} has no option {unknown[0]!r}: the model was saved by another version")
    return kind(**options)
