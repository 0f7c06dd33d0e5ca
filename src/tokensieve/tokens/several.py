"""The state of images of several sizes in one row: each size has a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.tokens.form import InRow
from tokensieve.tokens.node import register
from tokensieve.tokens.stand_in import StandIn
from tokensieve.tokens.state import READ, Fill, Tokens


@dataclass(frozen=True, eq=False)
class Several(StandIn):
    """The images of a row (T, C), those of one size together.

    Attributes:
        parts: a state for each size.
    """

    parts: tuple[Tokens, ...]

    def map(self, change: Callable[[Tokens], Tokens]) -> Several:
        """The same with every state changed."""
        return replace(self, parts=tuple(change(part) for part in self.parts))

    def restore(self, fill: Fill | None = None) -> Tensor:
        """(T, C), every patch of every image, as ``Tokens.restore`` gives them."""
        return self.row([replace(part, form=None).restore(fill) for part in self.parts])

    def row(self, images: list[Tensor]) -> Tensor:
        """(T, C) in the order of the row, given (B, N, C) of each size."""
        placed = {
            start: image
            for part, several in zip(self.parts, images, strict=True)
            for start, image in zip(_form(part).starts, several.unbind(0), strict=True)
        }
        return torch.cat([placed[start] for start in sorted(placed)])

    def split(self, row: Tensor) -> list[Tensor]:
        """(B, N, C) of each size out of a ``row`` (T, C)."""
        return [
            torch.stack([row[start : start + part.originals] for start in _form(part).starts]) for part in self.parts
        ]

    def whole(self) -> Tensor:
        """(T, C) the tokens as a layer that is read hands them out."""
        read = self.__dict__.get(READ)
        if read is None or read[2] != torch.is_grad_enabled():
            row = self.restore("last")
            read = self.__dict__[READ] = (row, None if row.is_inference() else row._version, torch.is_grad_enabled())
        return read[0]  # type: ignore[no-any-return]

    def written(self) -> bool:
        """Whether a reader has written into what ``whole`` gave it."""
        read = self.__dict__.get(READ)
        return read is not None and read[1] is not None and read[0]._version != read[1]

    def cannot(self, what: str) -> str:
        """Why ``what`` is refused, and what to do instead."""
        return self.parts[0].cannot(what)

    def to(self, *args: Any, **kwargs: Any) -> Several | Tensor:
        """The state on another device; in another dtype a tensor of all tokens."""
        moved = [part.to(*args, **kwargs) for part in self.parts]
        parts = tuple(part for part in moved if isinstance(part, Tokens))
        return replace(self, parts=parts) if len(parts) == len(moved) else self.whole().to(*args, **kwargs)

    @property
    def shape(self) -> torch.Size:
        return _form(self.parts[0]).shape

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device


def _form(part: Tokens) -> InRow:
    assert isinstance(part.form, InRow)
    return part.form


register(Several, ("parts",))
