"""The control that methods are seldom compared with: the picture itself, smaller."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.methods.language._budget import Budget
from tokensieve.methods.language._input import Grid, ResizingMethod
from tokensieve.ops.rows import at_least_float32


@dataclass(frozen=True, kw_only=True)
class Downsample(ResizingMethod, Budget):
    """Make every picture smaller, so that the tower itself gives fewer features: what any method has to beat.

    The tower sees so many patches fewer, too. A picture whose features lie in R rows and C columns becomes one of r and
    c: R · s and C · s, each rounded up or down, with s = sqrt(asked / (R · C)), and of these the largest r · c that is
    at most the number asked for; where two are as large, the one whose aspect is nearest. So it may keep fewer than it
    is asked for (128 of 24 × 24 are 11 × 11), never more. A projector that takes squares alone gets the largest square.
    The pixels are resized as the model is given them, behind the processor, with antialiasing; a tower with learned
    positions interpolates those. A feature stands at the place of the full grid that lies nearest to it, and the other
    places leave; of a video each frame is made smaller, and none left out. It is refused where the number of features
    does not follow the size of the picture: tiles with newlines between rows, queries, pooling to a fixed number.

    Options:
        keep: share of an image's tokens to keep at most, in (0, 1].
        tokens: their number at most, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        filter: by which pixels are interpolated.
    """

    filter: Literal["bicubic", "bilinear"] = "bicubic"

    def size(self, grid: Grid, square: bool) -> Grid:
        *frames, rows, columns = grid
        every = math.prod(frames)
        count = self.count(every * rows * columns) // every
        if count < 1:
            raise RefusedError(
                f"{self.name} keeps all {every} frames of a video, and {self} leaves less than one token a frame: give "
                f"tokens={every} or more, or a keep of {every}/{every * rows * columns} or more"
            )
        if count == rows * columns:
            return grid
        if square:
            return (*frames, *[min(math.isqrt(count), rows, columns)] * 2)
        scale = math.sqrt(count / (rows * columns))
        return (*frames, *_largest(rows, columns, scale, count))

    def resized(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        smaller = F.interpolate(
            at_least_float32(pixels), (rows, columns), mode=self.filter, align_corners=False, antialias=True
        )
        return smaller.to(pixels.dtype)


def _largest(rows: int, columns: int, scale: float, count: int) -> tuple[int, int]:
    """The sides of a grid made smaller by ``scale``, each rounded up or down, with at most ``count`` places."""
    ways = [(max(1, math.floor(side * scale)), min(side, math.ceil(side * scale))) for side in (rows, columns)]
    found = [(r, c) for r, c in itertools.product(*ways) if r * c <= count]
    if not found:  # a line of less than one row
        found = [(min(rows, count), 1)] if rows > columns else [(1, min(columns, count))]

    def fit(size: tuple[int, int]) -> tuple[int, float]:
        stretch = abs(math.log(size[0] * columns / (size[1] * rows)))
        return size[0] * size[1], -round(stretch, 9)  # rounded, so that of two as far the first is taken: fewer rows

    return max(found, key=fit)
