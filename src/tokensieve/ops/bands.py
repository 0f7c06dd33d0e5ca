"""Neighbours on a grid by batched products: the patches of a band against the cells of three bands, not against all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Bands:
    """A grid of patches and a coarser grid of cells over it, cut into bands of ``reach`` rows of cells.

    A patch at row r lies in the cell row r · height // rows, columns alike. Whatever is at most ``reach`` cells away
    lies in its own band or one beside it, so that products with 3 · reach rows of cells replace those with all.
    Shapes: K bands, Q slots for patches in each, T = reach · width slots for cells in each; what a last or a shorter
    band lacks is padding.

    Attributes:
        rows, columns: of the grid of patches.
        height, width: of the grid of cells, no larger.
        reach: how many cells away counts as near, in every direction.
    """

    rows: int
    columns: int
    height: int
    width: int
    reach: int

    @property
    def count(self) -> int:
        """K."""
        return -(-self.height // self.reach)

    def start(self, band: int) -> int:
        """The first row of patches in a band."""
        return min(self.rows, -(-band * self.reach * self.rows // self.height))

    @property
    def depth(self) -> int:
        """Rows of patches that a band has room for: Q / columns."""
        return max(self.start(band + 1) - self.start(band) for band in range(self.count))

    def _slots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(K, depth): the row of patches in each slot, and whether there is one."""
        band = torch.arange(self.count + 1, device=device)
        start = ((band * (self.reach * self.rows) + self.height - 1) // self.height).clamp(max=self.rows).unsqueeze(1)
        row = start[:-1] + torch.arange(self.depth, device=device)
        return row.clamp(max=self.rows - 1), row < start[1:]

    def patches(self, values: Tensor) -> Tensor:
        """(B, rows · columns, D) in order to (B, K, Q, D); padding repeats the last row there is."""
        batch, _, channels = values.shape
        shape = (batch, self.count, self.depth * self.columns, channels)
        if self.count * self.depth == self.rows:
            return values.reshape(shape)
        row, _ = self._slots(values.device)
        return values.reshape(batch, self.rows, self.columns * channels).index_select(1, row.flatten()).view(shape)

    def unpatched(self, values: Tensor) -> Tensor:
        """(B, K, Q, D) back to (B, rows · columns, D) in order."""
        batch, _, _, channels = values.shape
        shape = (batch, self.rows * self.columns, channels)
        if self.count * self.depth == self.rows:
            return values.reshape(shape)
        row = torch.arange(self.rows, device=values.device)
        band = row * self.height // self.rows // self.reach
        start = (band * (self.reach * self.rows) + self.height - 1) // self.height
        slot = band * self.depth + row - start
        return values.reshape(batch, self.count * self.depth, self.columns * channels).index_select(1, slot).view(shape)

    def cells(self, values: Tensor) -> Tensor:
        """(B, height · width, D) in order to (B, K, T, D); padding is zero."""
        missing = self.count * self.reach - self.height
        if missing:
            values = F.pad(values, (0, 0, 0, missing * self.width))
        return values.reshape(values.shape[0], self.count, self.reach * self.width, values.shape[2])

    def uncelled(self, values: Tensor) -> Tensor:
        """(B, K, T, D) back to (B, height · width, D) in order."""
        return values.flatten(1, 2)[:, : self.height * self.width]

    def near(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which cells of three bands are near each patch, (K, Q, 3T) bool, and which slots hold a patch, (K, Q) bool.

        Slots of padding have the cells of the patch that they repeat.
        """
        row, there = self._slots(device)
        own = (row * self.height // self.rows).view(self.count, self.depth, 1, 1, 1)
        column = torch.arange(self.columns, device=device).view(1, 1, -1, 1, 1) * self.width // self.columns
        first = torch.arange(self.count, device=device).view(-1, 1, 1, 1, 1) * self.reach - self.reach
        cell_row = first + torch.arange(3 * self.reach, device=device).view(1, 1, 1, -1, 1)
        cell_column = torch.arange(self.width, device=device).view(1, 1, 1, 1, -1)
        close = ((cell_row - own).abs() <= self.reach) & (cell_row >= 0) & (cell_row < self.height)
        close = close & ((cell_column - column).abs() <= self.reach)
        slots = there.unsqueeze(2).expand(-1, -1, self.columns).flatten(1)
        return close.reshape(self.count, self.depth * self.columns, 3 * self.reach * self.width), slots

    def numbers(self, device: torch.device) -> Tensor:
        """(K, 1, 3T) int64: the number of each cell of three bands, any where there is none."""
        first = (torch.arange(self.count, device=device) - 1) * (self.reach * self.width)
        number = first.view(-1, 1, 1) + torch.arange(3 * self.reach * self.width, device=device)
        return number.clamp(0, self.height * self.width - 1)

    def inner(self, patches: Tensor, centres: Tensor) -> Tensor:
        """``products`` (B, K, Q, 3T) of patches (B, K, Q, C) with cells in order, (B, height · width, C)."""
        return products(patches, self.cells(centres))

    def beside(self, values: Tensor) -> Tensor:
        """Values (B, height · width) of cells in order as those of three bands, (B, K, 1, 3T)."""
        return beside(self.cells(values.unsqueeze(2)).squeeze(3)).unsqueeze(2)

    def collect(self, weights: Tensor, values: Tensor) -> Tensor:
        """``sums`` by cells in order: (B, height · width, D)."""
        return self.uncelled(sums(weights, values))


def products(patches: Tensor, cells: Tensor) -> Tensor:
    """Inner products (B, K, Q, 3T) of patches (B, K, Q, D) with the cells (B, K, T, D) of the band before, their own
    and the band behind; zero where there is no such band."""
    across = cells.transpose(2, 3)
    before = F.pad(patches[:, 1:] @ across[:, :-1], (0, 0, 0, 0, 1, 0))
    behind = F.pad(patches[:, :-1] @ across[:, 1:], (0, 0, 0, 0, 0, 1))
    return torch.cat([before, patches @ across, behind], dim=3)


def sums(weights: Tensor, values: Tensor) -> Tensor:
    """What each cell collects, (B, K, T, D): ``values`` (B, K, Q, D) of patches by their ``weights`` (B, K, Q, 3T)."""
    before, own, behind = weights.transpose(2, 3).chunk(3, dim=2)
    gained = own @ values
    gained = gained + F.pad(before[:, 1:] @ values[:, 1:], (0, 0, 0, 0, 0, 1))
    return gained + F.pad(behind[:, :-1] @ values[:, :-1], (0, 0, 0, 0, 1, 0))


def beside(cells: Tensor) -> Tensor:
    """Values (B, K, T) of cells as those of three bands, (B, K, 3T); zero where there is no such band."""
    return torch.cat([F.pad(cells[:, :-1], (0, 0, 1, 0)), cells, F.pad(cells[:, 1:], (0, 0, 0, 1))], dim=2)
