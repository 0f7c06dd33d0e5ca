"""The loss of a vision-language model that lost image tokens: a token that is gone is predicted by nobody."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokensieve.engine.takeover import TakenOver

IGNORED = -100  # what transformers leaves out of a loss

# (B, L) bool: which tokens the last call left, for the loss that the model makes right behind it; None for all.
STAYED: ContextVar[Tensor | None] = ContextVar("tokensieve_stayed", default=None)


class SievedHead(TakenOver):
    """The model with the head, around the one that puts images into the sequence: labels of tokens that are gone do not
    count. Collators that serve every kind of model leave labels at the placeholders of images."""

    @property
    def loss_function(self) -> Any:
        """That of the model, without the labels of tokens that left in this call."""
        return partial(_loss, super().loss_function)  # type: ignore[misc]

    @loss_function.setter
    def loss_function(self, function: Any) -> None:
        super(SievedHead, type(self)).loss_function.__set__(self, function)  # type: ignore[misc]


def heads_of(model: nn.Module, core: nn.Module) -> list[Any]:
    """The module inside ``model`` that makes a loss of what ``core`` gives; none where ``core`` does so itself."""
    around = (part for part in model.modules() if any(child is core for child in part.children()))
    return [part for part in around if hasattr(type(part), "loss_function")][:1]


def _loss(own: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
    """What ``own`` makes of the labels (B, L) of tokens that stayed."""
    stayed = STAYED.get()
    if stayed is not None and isinstance(labels, Tensor) and labels.shape == stayed.shape:
        labels = labels.masked_fill(~stayed.to(labels.device), IGNORED)
    return own(*args, labels=labels, **kwargs)
