"""How two models of one kind are compared: the protocol, and the loop over the images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.utils.processes import Processes


class Meters(Protocol):
    """Figures over a set of images, fed batch by batch."""

    def update(self, answers: Any, dense: Any, labels: Any) -> None:
        """Add a batch: what the model and the dense model answer, and what is right."""

    def add(self, other: Any) -> None:
        """Add the images that another one of the kind has seen."""

    def compute(self) -> Any:
        """A dataclass whose fields are those of a ``Row``."""


def add_counts(own: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Add what torchmetrics' metrics ``others`` have counted to those of the same name in ``own``, in place."""
    for name, metric in own.items():
        for part, counted in others[name].metric_state.items():
            setattr(metric, part, getattr(metric, part) + counted)


class Judge(ABC):
    """How models of one kind are compared."""

    @abstractmethod
    def answer(self, model: Callable[[Tensor], Any], images: Tensor, labels: Any) -> Any:
        """What ``model`` answers for (B, C, H, W) images, on the CPU."""

    @abstractmethod
    def meters(self, answers: Any) -> Meters:
        """Fresh meters for answers such as these."""


def compare(
    model: Callable[[Tensor], Any],
    dense: Callable[[Tensor], Any] | Iterator[Any],
    batches: Iterable[tuple[Tensor, Any]],
    processes: Processes | None = None,
    *,
    judge: Judge,
) -> Any:
    """How well ``model`` answers and how much like ``dense``, streamed: what the judge's meters compute.

    Args:
        model: images (B, C, H, W) to logits (B, K), or to what ``judge`` expects.
        dense: the dense model, or an iterator over the answers it gave for the same batches.
        batches: images and labels (B,), -1 where an image has none; or what ``judge`` expects.
        processes: the processes that have a share of the batches each; default this one has all of them.
        judge: how answers are compared.
    """
    meters: Meters | None = None
    for images, labels in batches:
        expected = judge.answer(dense, images, labels) if callable(dense) else next(dense)
        answers = judge.answer(model, images, labels)
        meters = judge.meters(answers) if meters is None else meters
        meters.update(answers, expected, labels)
    return joined(meters, processes)


def answers_of(
    model: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, Any]],
    processes: Processes | None = None,
    *,
    judge: Judge,
) -> tuple[list[Any], Any]:
    """The answers of a model, batch by batch, and its own figures; the arguments are those of ``compare``."""
    kept: list[Any] = []
    meters: Meters | None = None
    for images, labels in batches:
        answers = judge.answer(model, images, labels)
        meters = judge.meters(answers) if meters is None else meters
        meters.update(answers, answers, labels)
        kept.append(answers)
    return kept, joined(meters, processes)


def joined(meters: Meters | None, processes: Processes | None = None) -> Any:
    """The figures over the images of all processes.

    Args:
        meters: what this process has seen, None for nothing.
        processes: the processes that divide the images; default this one alone.

    Raises:
        TokensieveError: none of them has seen an image.
    """
    parts: Sequence[Meters | None] = [meters] if processes is None else processes.gather(meters)
    seen = [part for part in parts if part is not None]
    if not seen:
        raise TokensieveError("there is no image to compare models on")
    for part in seen[1:]:
        seen[0].add(part)
    return seen[0].compute()
