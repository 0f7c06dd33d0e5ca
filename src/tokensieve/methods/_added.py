"""What methods add to the loss while training: a rider that collects scalars and answers of auxiliary heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokensieve.tokens.node import register
from tokensieve.tokens.rider import Rider
from tokensieve.tokens.state import Tokens

NAME = "added"


@dataclass(frozen=True)
class Loss:
    """A loss that a method added while training; see ``View.add_loss``."""

    name: str
    value: Tensor


@dataclass(frozen=True)
class Answer:
    """An answer (B, K) that a method's own head gave while training; see ``View.add_answer``."""

    name: str
    logits: Tensor
    weight: float


@dataclass(frozen=True)
class Added(Rider):
    """Everything so far, in the order it was added; tokens that move change nothing of it."""

    losses: tuple[Loss, ...] = ()
    answers: tuple[Answer, ...] = ()


def added_to(tokens: Tokens) -> Added:
    """What methods have added up to this state."""
    rider = tokens.riders.get(NAME)
    return rider if isinstance(rider, Added) else Added()


def add(tokens: Tokens, losses: Sequence[Loss] = (), answers: Sequence[Answer] = ()) -> Tokens:
    """The state with losses and answers more."""
    before = added_to(tokens)
    return tokens.with_rider(NAME, Added((*before.losses, *losses), (*before.answers, *answers)))


register(Loss, ("value",))
register(Answer, ("logits",))
register(Added, ("losses", "answers"))
