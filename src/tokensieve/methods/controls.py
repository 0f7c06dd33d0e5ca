"""The controls that everything else is compared with: TopK, Random and Grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, nearest_share, per_site
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal, plane_of
from tokensieve.ops.rows import split_top
from tokensieve.ops.shuffle import shuffled
from tokensieve.tokens.decision import Assignment

PUBLISHED_SITES = (3, 6, 9)


@dataclass(frozen=True, kw_only=True)
class Pruning(Method):
    """Base of the methods that keep a share of the tokens at a few sites.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; round(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
    """

    keep: float | tuple[float, ...] = 0.7
    sites: tuple[int, ...] | None = None

    knob = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(all(0 < share <= 1 for share in shares) and bool(shares), self, "keep", "a share in (0, 1]")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, PUBLISHED_SITES, depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return nearest_share(patches, per_site(self.keep, site))


@dataclass(frozen=True, kw_only=True)
class TopK(Pruning):
    """Keep the tokens that the class token attends to most and drop the rest: importance and nothing else.

    Acts in the middle of blocks 3, 6, 9 of 12. Needs no training. This is EViT without its fused token.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; round(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        score: "importance" is class attention, or attention received where there is no class token; "received" is
            attention received in any model.
    """

    score: Literal["importance", "received"] = "importance"

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"received" if self.score == "received" else importance_signal(layout)})

    def assign(self, view: View) -> Assignment:
        score = view.received if self.score == "received" else view.importance
        keep, dropped = split_top(score, view.keep)
        return Assignment(keep=keep, dropped=dropped)


@dataclass(frozen=True, kw_only=True)
class Random(Pruning):
    """Keep tokens at random: what any score must beat.

    The order is drawn once per site from ``seed`` and is the same for every image, so that an image's answer never
    depends on the batch it is in.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; round(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        seed: of the order.
    """

    seed: int = 0

    def assign(self, view: View) -> Assignment:
        order = shuffled(view.count, self.seed * 1009 + view.site, view.x.device).expand(view.x.shape[0], -1)
        keep, dropped = order[:, : view.keep], order[:, view.keep :]
        return Assignment(keep=keep.sort(dim=1).values, dropped=dropped.sort(dim=1).values)


@dataclass(frozen=True, kw_only=True)
class Grid(Pruning):
    """Keep tokens spread evenly over the image: diversity and nothing else.

    Tokens are taken in an order in which every beginning is spread evenly over the grid (a two-dimensional
    low-discrepancy sequence), so any count works on any grid.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; round(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
    """

    looks_at_grid = True

    def module(self, layout: Layout) -> nn.Module:
        return Ranks(*plane_of(layout.grid, self.name))

    def assign(self, view: View) -> Assignment:
        ranks = view.module
        assert isinstance(ranks, Ranks)
        patches = view.tokens.originals
        if view.grid is None:
            rank = spread_line(patches, view.x.device)
        elif view.grid == ranks.grid:
            rank = ranks.rank
        else:
            rank = torch.tensor(spread(*plane_of(view.grid, self.name)), device=view.x.device)
        keep, dropped = split_top(-rank[view.rep], view.keep)
        return Assignment(keep=keep, dropped=dropped)


class Ranks(nn.Module):
    """``spread(rows, columns)`` on the model's device, worked out once; not part of the state dict."""

    rank: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.grid = (rows, columns)
        self.register_buffer("rank", torch.tensor(spread(rows, columns)), persistent=False)


def spread_line(length: int, device: torch.device) -> Tensor:
    """(length,) ranks whose every beginning is spread evenly over a line: for inputs that are not the layout's size."""
    golden = 0.6180339887498949
    return (torch.arange(length, device=device, dtype=torch.float64) * golden).frac().argsort().argsort()


def spread(rows: int, columns: int) -> list[int]:
    """For every cell of a grid, row by row, its rank in an order whose every beginning is spread evenly.

    The order follows the additive recurrence with the plastic number (Roberts 2018), each point taking the nearest free
    cell.
    """
    plastic = 1.32471795724474602596
    rank = [-1] * (rows * columns)
    step = 0
    for number in range(rows * columns):
        while True:
            step += 1
            row = int(math.modf(0.5 + step / plastic)[0] * rows)
            column = int(math.modf(0.5 + step / plastic**2)[0] * columns)
            cell = row * columns + column
            if rank[cell] < 0:
                rank[cell] = number
                break
            if step > 50 * rows * columns:
                rank[rank.index(-1)] = number
                break
    return rank
