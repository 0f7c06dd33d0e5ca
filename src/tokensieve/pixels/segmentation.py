"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.measure.judge import Meters
from tokensieve.pixels.task import Task, plane


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """A class for every pixel, learned by cross-entropy.

    Attributes:
        classes: K, how many there are.
        ignore_index: the value of pixels that do not count.
        reduce_zero_label: 0 means "other" and does not count, 1 is the first class, as in ADE20K.
    """

    classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False

    name = "segmentation"
    folders = ("masks", "annotations", "labels", "gt")
    endings = (".png", ".tif", ".tiff", ".bmp", ".npy")
    rising = ("mIoU", "pixel_accuracy")

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise TokensieveError(f"segmentation needs 2 classes or more (--num-classes), got {self.classes}")
        if 0 <= self.ignore_index < self.classes:
            raise TokensieveError(
                f"--ignore-index {self.ignore_index} is one of the {self.classes} classes, 0 to {self.classes - 1}: "
                "give the value of pixels that do not count"
            )

    @property
    def channels(self) -> int:
        return self.classes

    @property
    def counts(self) -> str:
        other = " and 0" if self.reduce_zero_label else ""
        return f"all values of a mask but {self.ignore_index}{other} count, see --ignore-index"

    def valid(self, target: Tensor) -> Tensor:
        return target != self.ignore_index

    def activate(self, outputs: Tensor) -> Tensor:
        return outputs

    def target(self, raw: NDArray[Any], name: str) -> Tensor:
        mask = plane(raw, name)
        if mask.dtype.kind not in "iu":
            raise TokensieveError(f"the mask {name} holds {mask.dtype} values: expected whole numbers, one a class")
        mask = mask.astype(np.int64)
        if self.reduce_zero_label:
            mask = np.where(mask == 0, self.ignore_index, mask - 1)
        wrong = (mask != self.ignore_index) & ((mask < 0) | (mask >= self.classes))
        if wrong.any():
            raise TokensieveError(
                f"the mask {name} has class {int(mask[wrong].max())}, and the classes are 0 to {self.classes - 1} "
                f"with {self.ignore_index} for pixels that do not count: give --num-classes or --ignore-index"
            )
        return torch.from_numpy(mask)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        wrong = F.cross_entropy(answers.float(), targets, ignore_index=self.ignore_index, reduction="sum")
        return wrong / self.valid(targets).sum().clamp(min=1)

    def decide(self, answer: Tensor) -> Tensor:
        return answer.argmax(dim=0).to(torch.int16)

    def meters(self) -> Meters:
        from tokensieve.pixels.meters import SegmentationMeters  # torchmetrics is slow to import

        return SegmentationMeters(self)
