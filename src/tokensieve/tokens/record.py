"""What the state remembers of its way through the blocks, for pictures and counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokensieve.tokens.node import register


@dataclass(frozen=True)
class Event:
    """What one site did, kept for pictures and counts.

    ``group`` is (B, N): which current token each original stands in after the event, -1 while parked or gone.
    It is None inside a soft assignment, where originals have no single group.
    """

    block: int
    point: str
    method: str
    before: int
    after: int
    group: Tensor | None
    returns: bool


@dataclass(frozen=True)
class Stage:
    """How many tokens, prefix included, block ``block`` ran its attention and its MLP on.

    ``alive`` is as in ``Table`` in the MLP, ``seen`` and ``mask`` are the training-time masks in attention and MLP.
    ``saved`` are the MACs per token that its attention went without, because it shared a map. Where it attends in
    windows, ``windows`` (B, M) are those of its tokens, and ``beyond`` (B, P) those of what else it attends to.
    """

    block: int
    attended: int
    processed: int
    alive: Tensor | None = None
    seen: Tensor | None = None
    mask: Tensor | None = None
    saved: int = 0
    windows: Tensor | None = None
    beyond: Tensor | None = None


register(Event, ("group",))
register(Stage, ("alive", "seen", "mask", "windows", "beyond"))
