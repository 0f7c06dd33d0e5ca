"""ALGM (arXiv 2406.09936)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View
from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import unit_rows
from tokensieve.tokens.decision import Assignment, ragged_merge


@dataclass(frozen=True, kw_only=True)
class ALGM(Method):
    """Adaptive Local-then-Global Merging: first like neighbours become one, later like tokens anywhere.

    In the middle of block 0 of 12 the four tokens of a 2×2 window merge where the mean cosine of their six pairs
    reaches ``threshold``; merged windows come first from then on, the most alike first, the other tokens behind them.
    In the middle of block 4 tokens alternate between two sides, and each of one side merges into its most similar one
    of the other where their cosine reaches the image's own bar: the mean of these best cosines plus 1/L of their
    standard deviation, L the block's number counted from 1 (a fifth at block 4, a seventh at block 6). Both compare the
    tokens themselves and merge means weighted by size. Made for segmentation, where all tokens return behind the
    decoder: ADE20K S 45.3 to 46.4 mIoU at 134 to 192 images/s, trained with it [authors]. Works without training.

    Our choice: windows that the grid cuts off do not merge; the deviation is the unbiased one. Images keep different
    numbers of tokens and an image's answer does not depend on its batch (the authors' code takes the fewest merges in
    a batch): short images are padded and the padding masked out. Where an image has another size than the model's and
    its grid is not known, a window is four tokens in a row.

    Options:
        threshold: mean cosine from which on a window merges; 0.88 to 0.95 in the paper, above 1 merges none.
        sites: 0-based blocks; the first merges windows, the others match. Default 0, 4 of 12, scaled to the depth; the
            paper takes 0, 6 of the 24 of ViT-L.
    """

    threshold: float = 0.88
    sites: tuple[int, ...] | None = None

    knob = "threshold"
    ragged = True
    looks_at_grid = True
    paper = (
        "ALGM: Adaptive Local-then-Global Token Merging for Efficient Semantic Segmentation with Plain Vision "
        "Transformers",
        "Norouzi et al.",
        2024,
        "2406.09936",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(-1 <= self.threshold <= 2, self, "threshold", "a cosine, or above 1 to merge no window")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (0, 4), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def assign(self, view: View) -> Assignment:
        if view.site == 0:
            joins, rank = self._windows(view)
            return ragged_merge(joins, view.alive, rank)
        return ragged_merge(self._matches(view), view.alive)

    def _windows(self, view: View) -> tuple[Tensor, Tensor | None]:
        """(B, M) the token that each joins, at the first site, where all of them are present and in order, and (B, M)
        by what those that stay are ordered: merged windows first, the most alike first."""
        positions = torch.arange(view.count, device=view.x.device)
        if view.plane is None:
            corners, steps = positions[: view.count // 4 * 4 : 4], positions[:4]
        else:
            rows, columns = view.plane
            corners = positions.view(rows, columns)[: rows // 2 * 2 : 2, : columns // 2 * 2 : 2].flatten()
            steps = positions[:2].unsqueeze(1) * columns + positions[:2]
        if not corners.shape[0]:
            return positions.expand(view.x.shape[0], -1), None
        members = corners.unsqueeze(1) + steps.flatten()  # (W, 4)
        four = unit_rows(view.x)[:, members]
        with torch.autocast(view.x.device.type, enabled=False):
            mean = torch.triu(four @ four.transpose(2, 3), diagonal=1).sum(dim=(2, 3)) / 6
        window = self._window_of(positions, view.plane)
        inside = window < corners.shape[0]
        window = window.clamp(max=corners.shape[0] - 1)
        merges = (mean >= self.threshold)[:, window] & inside
        return torch.where(merges, corners[window], positions), torch.where(merges, -mean[:, window], 2.0)

    def _window_of(self, positions: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """(M,): the window that each token lies in, and a number past the last one where it lies in none."""
        return positions // 4 if grid is None else square_windows(positions, *grid)

    def _matches(self, view: View) -> Tensor:
        """(B, M): the token that each joins, by its best cosine with a token of the other side."""
        first = view.layout.prefix % 2
        cosines = similarity(view.x[:, first::2], view.x[:, 1 - first :: 2])
        present = None
        if view.alive is not None:
            present = view.alive[:, first::2]
            cosines = cosines.masked_fill(~view.alive[:, None, 1 - first :: 2], -torch.inf)
        best, partner = cosines.max(dim=2)
        positions = torch.arange(view.count, device=view.x.device)
        moves = best >= bar(best, present, view.block + 1)
        if present is not None:
            moves = moves & present
        joins = torch.where(moves, positions[1 - first :: 2][partner], positions[first::2])
        return put_side(joins, positions, first)


def bar(best: Tensor, present: Tensor | None, part: int) -> Tensor:
    """(B, 1): mean plus 1/``part`` of the unbiased deviation of (B, I) values, over those that are ``present``."""
    counted = torch.ones_like(best) if present is None else present.to(best.dtype)
    values = best.masked_fill(counted == 0, 0)
    number = counted.sum(dim=1, keepdim=True)
    mean = values.sum(dim=1, keepdim=True) / number.clamp(min=1)
    square = ((values - mean).square() * counted).sum(dim=1, keepdim=True)
    return mean + (square / (number - 1).clamp(min=1)).sqrt() / part


def put_side(side: Tensor, whole: Tensor, first: int) -> Tensor:
    """(B, M): every second of ``whole`` (M,), from ``first`` on, replaced by ``side`` (B, I)."""
    out = whole.expand(side.shape[0], -1).clone()
    out[:, first::2] = side
    return out


def square_windows(position: Tensor, rows: int, columns: int) -> Tensor:
    """The number of the 2×2 window that each cell (M,) of a grid lies in; cells that no whole window holds are alone.

    Numbers of windows count from 0, those of lone cells from the number of cells on.
    """
    row, column = position // columns, position % columns
    whole = (row < rows // 2 * 2) & (column < columns // 2 * 2)
    return torch.where(whole, row // 2 * (columns // 2) + column // 2, rows * columns + position)
