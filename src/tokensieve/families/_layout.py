"""What a model's token sequence looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What a model's token sequence looks like, fixed when methods are applied.

    Attributes:
        depth: number of blocks.
        dim: C, channels of a token.
        heads: H, attention heads of a block.
        prefix: P, class, distillation and register tokens in front.
        class_token: whether token 0 is a class token whose attention scores the others.
        grid: the axes along which the patches lie at the model's input size, the last one fastest: (rows, columns) of
            an image, (frames, rows, columns) of a clip.
    """

    depth: int
    dim: int
    heads: int
    prefix: int
    class_token: bool
    grid: Grid

    @property
    def patches(self) -> int:
        """N, the patches at the model's input size."""
        return math.prod(self.grid)
