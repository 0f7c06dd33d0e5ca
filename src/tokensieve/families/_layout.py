"""What a model's token sequence looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What the token sequence of a model looks like at its input size, or that of one image (``of``).

    Attributes:
        depth: number of blocks.
        dim: C, channels of a token.
        heads: H, attention heads of a block.
        prefix: P, class, distillation and register tokens in front.
        class_token: whether token 0 is a class token whose attention scores the others.
        behind: how many of them lie behind the patches in the model's own sequence; methods see all of them in front.
        windowed: the blocks where no image attends to itself as a whole, but in windows, or joined with others.
        grid: the axes along which the patches lie at the model's input size, the last one fastest: (rows, columns) of
            an image, (frames, rows, columns) of a clip.
        sized: whether the model has an input size; else ``grid`` is that of an image that stands for others.
    """

    depth: int
    dim: int
    heads: int
    prefix: int
    class_token: bool
    grid: Grid
    behind: int = 0
    windowed: frozenset[int] = frozenset()
    sized: bool = True

    @property
    def patches(self) -> int:
        """N, the patches at the model's input size."""
        return math.prod(self.grid)

    def of(self, patches: int, grid: Grid | None = None) -> Layout:
        """The layout of an image of ``patches`` on ``grid``; where that is not known they lie in one row."""
        found = (patches,) if grid is None else grid
        return self if grid == self.grid or (grid is None and patches == self.patches) else replace(self, grid=found)
