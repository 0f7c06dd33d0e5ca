"""What stayed of the images of a call, for who wants to look; nothing is noted unless somebody does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KeptTokens:
    """What a decoder saw of one call in which images came in.

    Attributes:
        visual: (B, L) bool: where in the uncut sequence tokens of images stand.
        stages: by the number of the first layer that sees no more, (B, L) bool: the tokens that its hidden states have.
            Layer 0 comes first: what a prefix or input method left.
        changed: (B, L) bool: the places where something else stands than the image's own feature, merged or added.
    """

    visual: Tensor
    stages: tuple[tuple[int, Tensor], ...]
    changed: Tensor

    @property
    def image_tokens(self) -> dict[int, int]:
        """By the number of the first layer that sees no more: image tokens that its hidden states have."""
        return {first: int((self.visual & stays).sum()) for first, stays in self.stages}


WATCHED: ContextVar[list[KeptTokens] | None] = ContextVar("tokensieve_kept_tokens", default=None)


@contextmanager
def watching() -> Iterator[list[KeptTokens]]:
    """Every call with images that a decoder with methods around it gets inside goes into the list, in order."""
    calls: list[KeptTokens] = []
    token = WATCHED.set(calls)
    try:
        yield calls
    finally:
        WATCHED.reset(token)
