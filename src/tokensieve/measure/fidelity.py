"""How well a model answers, and how much like the dense model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import KLDivergence
from torchmetrics.classification import MulticlassAccuracy

from tokensieve.errors import TokensieveError

NO_LABEL = -1


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


def compare(
    model: Callable[[Tensor], Any],
    dense: Callable[[Tensor], Any] | Iterator[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Fidelity:
    """Accuracy of ``model`` and its agreement with ``dense``, streamed.

    Args:
        model: images (B, C, H, W) to logits (B, K).
        dense: the dense model, or an iterator over the logits it gave for the same batches.
        batches: images and labels (B,), -1 where an image has none.
    """
    meters: Meters | None = None
    for images, labels in batches:
        expected = predict(dense, images) if callable(dense) else next(dense)
        logits = predict(model, images)
        meters = Meters(logits.shape[-1]) if meters is None else meters
        meters.update(logits, expected, labels)
    if meters is None:
        raise TokensieveError("there is no image to compare models on")
    return meters.compute()


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


class Meters:
    """torchmetrics' accuracies and divergence, fed batch by batch.

    Args:
        classes: K, the number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.images = 0
        self.labelled = 0
        alone: dict[str, Any] = {"average": "micro", "sync_on_compute": False}  # other processes measure for themselves
        self.top1 = MulticlassAccuracy(classes, ignore_index=NO_LABEL, **alone)
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), ignore_index=NO_LABEL, **alone)
        self.agreement = MulticlassAccuracy(classes, **alone)
        self.kl = KLDivergence(log_prob=True, sync_on_compute=False)

    def update(self, logits: Tensor, dense: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K) of the model and of the dense model, labels (B,)."""
        labels = labels.cpu()
        self.images += len(labels)
        self.labelled += int((labels != NO_LABEL).sum())
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.agreement.update(logits, dense.argmax(dim=1))
        self.kl.update(dense.double().log_softmax(dim=1), logits.double().log_softmax(dim=1))

    def compute(self) -> Fidelity:
        """The figures over everything seen so far."""
        labelled = self.labelled > 0
        return Fidelity(
            images=self.images,
            top1=100 * self.top1.compute().item() if labelled else None,
            top5=100 * self.top5.compute().item() if labelled else None,
            agreement=100 * self.agreement.compute().item(),
            kl=self.kl.compute().item(),
        )
