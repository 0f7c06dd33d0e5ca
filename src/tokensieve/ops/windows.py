"""Neighbours on a grid by the window of cells around each patch: what the CPU kernels take, no cell more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu
from tokensieve.ops._operator import followed, operator


@dataclass(frozen=True)
class Windows:
    """A grid of patches and a coarser grid of cells over it, as ``Bands``, with nothing but the cells near each patch.

    A patch has T = (2 · reach + 1)² slots for cells, row by row around its own. There is one band, without padding:
    K = 1 and Q = rows · columns. ``Bands`` has the attributes, and says what the methods do.
    """

    rows: int
    columns: int
    height: int
    width: int
    reach: int

    def patches(self, values: Tensor) -> Tensor:
        """(B, N, D) to (B, 1, N, D)."""
        return values.unsqueeze(1)

    def unpatched(self, values: Tensor) -> Tensor:
        """(B, 1, N, D) to (B, N, D)."""
        return values.squeeze(1)

    def near(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1, N, T) bool, which slots hold a cell, and (1, N) bool, True."""
        row, column = self._cells(device)
        inside = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
        return inside.unsqueeze(0), torch.ones(1, inside.shape[0], dtype=torch.bool, device=device)

    def numbers(self, device: torch.device) -> Tensor:
        """(1, N, T) int64: the number of each cell, any where there is none."""
        row, column = self._cells(device)
        return (row * self.width + column).clamp(0, self.height * self.width - 1).unsqueeze(0)

    def inner(self, patches: Tensor, centres: Tensor) -> Tensor:
        """Products (B, 1, N, T) of patches (B, 1, N, C) with the cells (B, S, C) near them, zero for none."""
        return window_products(patches.squeeze(1), centres, self).unsqueeze(1)

    def beside(self, values: Tensor) -> Tensor:
        """Values (B, S) of cells as those near each patch, (B, 1, N, T)."""
        number = self.numbers(values.device)
        return values[:, number.flatten()].view(values.shape[0], *number.shape)

    def collect(self, weights: Tensor, values: Tensor) -> Tensor:
        """What each cell collects, (B, S, D): ``values`` (B, 1, N, D) of patches by their ``weights`` (B, 1, N, T)."""
        return window_sums(weights.squeeze(1), values.squeeze(1), self)

    @property
    def sides(self) -> tuple[int, int, int, int, int]:
        """Rows, columns, height, width and reach."""
        return self.rows, self.columns, self.height, self.width, self.reach

    def _cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(N, T) int64 each: rows and columns of the cells around each patch, on the grid or beyond it."""
        patch = torch.arange(self.rows * self.columns, device=device).unsqueeze(1)
        side = 2 * self.reach + 1
        slot = torch.arange(side * side, device=device)
        row = patch // self.columns * self.height // self.rows + slot // side - self.reach
        column = patch % self.columns * self.width // self.columns + slot % side - self.reach
        return row, column


def windows_serve(x: Tensor) -> bool:
    """Whether the kernels of ``window_products`` and ``window_sums`` serve patches like ``x``."""
    return x.dtype == torch.float32 and (torch.compiler.is_compiling() or not followed()) and cpu.serves(x)


@operator
def window_products(x: Tensor, centres: Tensor, windows: Windows) -> Tensor:
    """Inner products (B, N, T) of patches (B, N, C) with the cells (B, S, C) in their windows, zero beyond the grid."""
    (inside,), (number,) = windows.near(x.device)[0], windows.numbers(x.device)
    products = (x @ centres.transpose(1, 2)).gather(2, number.expand(x.shape[0], -1, -1))
    return products.where(inside, 0)


@operator
def window_sums(weights: Tensor, values: Tensor, windows: Windows) -> Tensor:
    """(B, S, D): ``values`` (B, N, D) of patches by their ``weights`` (B, N, T), zero beyond the grid."""
    (number,) = windows.numbers(values.device)
    matrix = weights.new_zeros(*weights.shape[:2], windows.height * windows.width)
    matrix = matrix.scatter_add(2, number.expand(weights.shape[0], -1, -1), weights)
    return matrix.transpose(1, 2) @ values


@cpu.compiled(
    "window_products(Tensor x, Tensor centres, int rows, int columns, int height, int width, int reach) -> Tensor"
)
def _window_products(
    x: Tensor, centres: Tensor, rows: int, columns: int, height: int, width: int, reach: int
) -> Tensor:
    return x.new_empty(x.shape[0], rows * columns, (2 * reach + 1) ** 2)


@cpu.compiled(
    "window_sums(Tensor weights, Tensor values, int rows, int columns, int height, int width, int reach) -> Tensor"
)
def _window_sums(
    weights: Tensor, values: Tensor, rows: int, columns: int, height: int, width: int, reach: int
) -> Tensor:
    return values.new_empty(values.shape[0], height * width, values.shape[2])


@window_products.on_cpu
def _(x: Tensor, centres: Tensor, windows: Windows) -> Tensor | Any:
    if not windows_serve(x) or not windows_serve(centres):
        return NotImplemented
    return _window_products(x.contiguous(), centres.contiguous(), *windows.sides)


@window_sums.on_cpu
def _(weights: Tensor, values: Tensor, windows: Windows) -> Tensor | Any:
    if not windows_serve(weights) or not windows_serve(values):
        return NotImplemented
    return _window_sums(weights.contiguous(), values.contiguous(), *windows.sides)
