"""The figures of segmentation and depth: from torchmetrics where it has them, else by the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

from tokensieve.measure.judge import add_counts
from tokensieve.pixels.task import PixelOutcome

if TYPE_CHECKING:  # the tasks make their meters
    from tokensieve.pixels.depth import Depth
    from tokensieve.pixels.segmentation import Segmentation


class SegmentationMeters:
    """torchmetrics' Jaccard index and accuracy over all pixels of all images, fed batch by batch.

    mIoU is the mean over the classes that occur of intersection over union, counted over the whole set; pixel accuracy
    is the share of valid pixels with their class; agreement the share of all pixels with the dense model's class. All
    are in percent.
    """

    def __init__(self, task: Segmentation) -> None:
        self.task = task
        self.images = 0
        self.labelled = 0
        alone: dict[str, Any] = {"sync_on_compute": False}
        counted = alone | {"ignore_index": task.ignore_index}
        self.counts: dict[str, Any] = {
            "mIoU": MulticlassJaccardIndex(task.classes, average="macro", **counted),
            "pixel_accuracy": MulticlassAccuracy(task.classes, average="micro", **counted),
            "agreement": MulticlassAccuracy(task.classes, average="micro", **alone),
        }

    def update(self, answers: Sequence[Tensor], dense: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Add a batch: classes (H, W) of the model and of the dense model, and masks (H, W); any shape but that means
        that there is no mask."""
        for answer, other, target in zip(answers, dense, targets, strict=True):
            found = answer.long().flatten()
            self.images += 1
            if target.shape == answer.shape and bool(self.task.valid(target).any()):
                self.labelled += 1
                self.counts["mIoU"].update(found, target.flatten())
                self.counts["pixel_accuracy"].update(found, target.flatten())
            self.counts["agreement"].update(found, other.long().flatten())

    def add(self, other: SegmentationMeters) -> None:
        """Add the images that another one has seen."""
        self.images += other.images
        self.labelled += other.labelled
        add_counts(self.counts, other.counts)

    def compute(self) -> PixelOutcome:
        """The figures over everything seen so far."""
        names = [name for name in self.counts if self.labelled or name == "agreement"]
        return PixelOutcome(self.images, {name: 100 * self.counts[name].compute().item() for name in names})


def depth_errors(found: Tensor, target: Tensor) -> dict[str, float]:
    """The errors of one image's predictions, both (P,) metres above 0.

    AbsRel mean |d̂ − d| / d; RMSE √mean (d̂ − d)²; log10 mean |log₁₀ d̂ − log₁₀ d|; δi the percentage of pixels with
    max(d̂ / d, d / d̂) < 1.25ⁱ; SILog 100 · √(mean e² − (mean e)²) with e = ln d̂ − ln d.
    """
    found, target = found.double(), target.double()
    logs = found.log() - target.log()
    ratio = torch.maximum(found / target, target / found)
    return {
        "RMSE": mean_squared_error(found, target, squared=False).item(),
        "AbsRel": mean_absolute_percentage_error(found, target).item(),
        "log10": logs.abs().mean().item() / math.log(10),
        **{f"delta{power}": 100 * (ratio < 1.25**power).double().mean().item() for power in (1, 2, 3)},
        "SILog": 100 * math.sqrt(max(0.0, logs.square().mean().item() - logs.mean().item() ** 2)),
    }


class DepthMeters:
    """Errors image by image, and their mean over the images, as the field reports them.

    Images without a valid pixel do not count. ``vs_dense`` is the AbsRel of the prediction against the dense model's,
    in percent, over all pixels.
    """

    def __init__(self, task: Depth) -> None:
        self.task = task
        self.images = 0
        self.errors: list[dict[str, float]] = []
        self.apart: list[float] = []

    def update(self, answers: Sequence[Tensor], dense: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Add a batch: metres (H, W) of the model, of the dense model and measured; any other shape of the last means
        that there are none."""
        for answer, other, target in zip(answers, dense, targets, strict=True):
            self.images += 1
            self.apart.append(((answer - other).abs() / other).double().mean().item())
            if target.shape != answer.shape:
                continue
            counted = self.task.counted(target)
            if not bool(counted.any()):
                continue
            found, wanted = answer[counted], target[counted]
            if self.task.median_scaling:
                found = found * (wanted.median() / found.median())
            self.errors.append(depth_errors(found.clamp(self.task.min_depth, self.task.max_depth), wanted))

    def add(self, other: DepthMeters) -> None:
        """Add the images that another one has seen."""
        self.images += other.images
        self.errors += other.errors
        self.apart += other.apart

    def compute(self) -> PixelOutcome:
        """The figures over everything seen so far, the same to the last bit in whatever order it came."""
        metrics = {}
        if self.errors:
            count = len(self.errors)
            metrics = {name: math.fsum(one[name] for one in self.errors) / count for name in self.errors[0]}
        return PixelOutcome(self.images, metrics | {"vs_dense": 100 * math.fsum(self.apart) / self.images})
