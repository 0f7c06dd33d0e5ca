"""The state of images of several sizes in one tensor: each size has a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.tokens.form import Share
from tokensieve.tokens.node import register
from tokensieve.tokens.stand_in import StandIn
from tokensieve.tokens.state import Fill, Tokens


@dataclass(frozen=True, eq=False)
class Several(StandIn):
    """The images of a row (T, C) or of a padded batch (B, L, C), those of one size together.

    Attributes:
        parts: a state for each size, whose form is a ``Share``.
        last: what the model last had itself, and where padding keeps its value.
    """

    parts: tuple[Tokens, ...]
    last: Tensor

    def map(self, change: Callable[[Tokens], Tokens]) -> Several:
        """The same with every state changed."""
        return replace(self, parts=tuple(change(part) for part in self.parts))

    def restore(self, fill: Fill | None = None) -> Tensor:
        """Every patch of every image as the model has them, restored as ``Tokens.restore`` does."""
        return self.joined([replace(part, form=None).restore(fill) for part in self.parts])

    def joined(self, images: list[Tensor]) -> Tensor:
        """What the model has where those of each size are ``images`` (B, P + N, C)."""
        whole = self.last.clone()
        for part, tokens in zip(self.parts, images, strict=True):
            _form(part).put(whole, tokens)
        return whole

    def ran(self, x: Tensor, run: Callable[[Tokens, Tensor], Tokens]) -> Several:
        """The state behind a block that gave ``x`` of all images at once, as ``run`` makes it of each part."""
        return Several(tuple(run(part, _form(part).taken(x)) for part in self.parts), x)

    def cannot(self, what: str) -> str:
        """Why ``what`` is refused, and what to do instead."""
        return self.parts[0].cannot(what)

    def to(self, *args: Any, **kwargs: Any) -> Several | Tensor:
        """The state on another device; in another dtype a tensor of all tokens."""
        moved = [part.to(*args, **kwargs) for part in self.parts]
        parts = tuple(part for part in moved if isinstance(part, Tokens))
        if len(parts) < len(moved):
            return self.whole().to(*args, **kwargs)
        return Several(parts, self.last.to(*args, **kwargs))

    @property
    def shape(self) -> torch.Size:
        return _form(self.parts[0]).shape

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device


def _form(part: Tokens) -> Share:
    assert isinstance(part.form, Share)
    return part.form


register(Several, ("parts", "last"))
