"""How well a model answers, and how much like the dense model it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.data.stream import NO_LABEL
from tokensieve.errors import TokensieveError
from tokensieve.measure import judge as judging
from tokensieve.measure.judge import Judge, Meters, add_counts
from tokensieve.utils.processes import Processes


@dataclass(frozen=True)
class Fidelity:
    """Accuracy and agreement over a set of images.

    Attributes:
        images: how many there were.
        top1, top5: accuracy in percent, None where no image has a label.
        agreement: share of images, in percent, on which reduced and dense model name the same class.
        kl: mean Kullback-Leibler divergence KL(dense ‖ reduced) of the class distributions, in nats.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float
    kl: float


class Classification(Judge):
    """Compares class logits (B, K) with labels (B,)."""

    def answer(self, model: Callable[[Tensor], Any], images: Tensor, labels: Any) -> Tensor:
        return predict(model, images)

    def meters(self, answers: Tensor) -> Meters:
        return ClassMeters(answers.shape[-1])


def judge_of(model: Any) -> Judge:
    """How models such as this one are compared: as it says itself, else as classifiers."""
    own = getattr(model, "judge", None)
    judge: Judge = Classification() if own is None else own()
    return judge


def compare(
    model: Callable[[Tensor], Any],
    dense: Callable[[Tensor], Any] | Iterator[Any],
    batches: Iterable[tuple[Tensor, Any]],
    processes: Processes | None = None,
) -> Fidelity:
    """Accuracy of ``model`` and its agreement with ``dense``, streamed.

    Args:
        model: images (B, C, H, W) to logits (B, K).
        dense: the dense model, or an iterator over the logits it gave for the same batches.
        batches: images and labels (B,), -1 where an image has none.
        processes: the processes that have a share of the batches each; default this one has all of them.
    """
    found: Fidelity = judging.compare(model, dense, batches, processes, judge=Classification())
    return found


def predict(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Logits (B, K) of ``images``, in float32 on the CPU."""
    with torch.inference_mode():
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TokensieveError(
            f"the model does not answer with class logits (images, classes) but with {shape}: "
            "give a classifier, or set --num-classes"
        )
    return logits.float().cpu()


class ClassMeters:
    """torchmetrics' accuracies and the divergence, fed batch by batch.

    Args:
        classes: K, the number of classes.
    """

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import (
            MulticlassAccuracy,  # takes as long as timm: not before there is an answer
        )

        self.classes = classes
        self.images = 0
        self.labelled = 0
        alone: dict[str, Any] = {
            "average": "micro",
            "sync_on_compute": False,
        }  # whose images these are is known outside
        self.accuracies = {
            "top1": MulticlassAccuracy(classes, ignore_index=NO_LABEL, **alone),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), ignore_index=NO_LABEL, **alone),
            "agreement": MulticlassAccuracy(classes, **alone),
        }
        self.kl: list[float] = []

    def update(self, logits: Tensor, dense: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K) of the model and of the dense model, labels (B,)."""
        labels = labels.cpu()
        if int(labels.max()) >= self.classes:
            raise TokensieveError(
                f"an image is of class {int(labels.max())}, counted from 0, and the model answers with {self.classes} "
                "classes: give a model of these classes, or --classes with a line for each"
            )
        self.images += len(labels)
        self.labelled += int((labels != NO_LABEL).sum())
        self.accuracies["top1"].update(logits, labels)
        self.accuracies["top5"].update(logits, labels)
        self.accuracies["agreement"].update(logits, dense.argmax(dim=1))
        found, wanted = (given.double().log_softmax(dim=1) for given in (logits, dense))
        self.kl += F.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1).tolist()

    def add(self, other: ClassMeters) -> None:
        """Add the images that another one has seen."""
        self.images += other.images
        self.labelled += other.labelled
        add_counts(self.accuracies, other.accuracies)
        self.kl += other.kl

    def compute(self) -> Fidelity:
        """The figures over everything seen so far, the same to the last bit in whatever order it came."""
        share = {name: 100 * accuracy.compute().item() for name, accuracy in self.accuracies.items()}
        labelled = self.labelled > 0
        return Fidelity(
            images=self.images,
            top1=share["top1"] if labelled else None,
            top5=share["top5"] if labelled else None,
            agreement=share["agreement"],
            kl=math.fsum(self.kl) / self.images,
        )
