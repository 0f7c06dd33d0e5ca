"""What a model's token sequence looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Layout:
    """What a model's token sequence looks like, fixed when methods are applied.

    Attributes:
        depth: number of blocks.
        dim: C, channels of a token.
        heads: H, attention heads of a block.
        prefix: P, class, distillation and register tokens in front.
        class_token: whether token 0 is a class token whose attention scores the others.
        grid: (rows, columns) of the patch grid at the model's input size.
    """

    depth: int
    dim: int
    heads: int
    prefix: int
    class_token: bool
    grid: tuple[int, int]
