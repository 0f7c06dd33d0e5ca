"""CubistMerge (arXiv 2509.21764)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, per_site, scaled_sites
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View, plane_of
from tokensieve.ops.rows import complement, named, rank_descending, unit_rows
from tokensieve.tokens.decision import Assignment, slots
from tokensieve.tokens.move import move_tokens

Sides = tuple[int, int]  # rows and columns of a grid of tokens
AXES: tuple[Literal["rows", "columns"], ...] = ("rows", "columns")  # the options that say what each of them loses


@dataclass(frozen=True, kw_only=True)
class CubistMerge(Method):
    """Merge neighbours so that a grid stays a grid: every row loses equally many tokens, then every column does.

    Before one early block. In a row tokens alternate between two sides. Each one at an odd place takes the more similar
    of its two neighbours, by the cosine of the tokens themselves, and the best of these edges merge, as many in every
    row. What is left, shorter rows in the old order, does the same along its columns. In each channel a merged token
    has that value of its members which is largest in magnitude, sign kept. A patch is given back the value of its
    token. Needs no training. SAM-H 1.25 times as fast at 0.7 % less mIoU on COCO; DeiT-B 1.15 times at no loss of
    top-1, after an epoch of fine-tuning [authors].

    Block, point, sides, ties (the neighbour before) and no log-size attention are those of the authors' code for DeiT,
    which gives the same answer but where a token is joined from both sides: it writes one of the two over the other.
    Our choice: of equal edges the first merges; of values equal in magnitude the positive one counts; a merged token
    has the position of its member that stayed put (the authors' DINOv3 has rotary positions of a whole smaller grid).
    Further sites act on the grid that the one before has left. Methods that remove tokens act behind the last one.

    Options:
        keep: share of the tokens present that a site leaves, or one share per site: round(√keep · side) rows and
            columns, never fewer than half. 0.75 leaves 12 × 12 of 14 × 14, the stronger of the authors' two examples.
        rows: how many rows a site removes, or one number per site, at most half of them; None: as ``keep`` says.
        columns: the same for columns.
        sites: 0-based blocks before which it acts; default 1 of 12, scaled to the depth, 1 of fewer.
        value: of a merged token: in each channel the "larger" in magnitude of its members, or their "mean" weighted by
            size.
        proportional: log-size attention in later blocks.
    """

    keep: float | tuple[float, ...] = 0.75
    rows: int | tuple[int, ...] | None = None
    columns: int | tuple[int, ...] | None = None
    sites: tuple[int, ...] | None = None
    value: Literal["larger", "mean"] = "larger"
    proportional: bool = False

    name = "cubist"
    point = "before"
    knob = "keep"
    undivided = True
    gridded = True
    paper = (
        "CubistMerge: Spatial-Preserving Token Merging For Diverse ViT Backbones",
        "Gong and Lis",
        2025,
        "2509.21764",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(all(0 < share <= 1 for share in shares) and bool(shares), self, "keep", "a share in (0, 1]")
        for option in AXES:
            removed = getattr(self, option)
            numbers = removed if isinstance(removed, tuple) else (removed or 0,)
            require(
                all(number >= 0 for number in numbers), self, option, "a whole number, 0 or more, or a list of them"
            )

    def blocks(self, depth: int) -> tuple[int, ...]:
        if self.sites is None:
            (site,) = scaled_sites((1,), depth)
            return (min(max(1, site), depth - 1),)  # never before the first block where there is a second one
        return checked_sites(self.sites, (), depth, self.name)

    def refuse(self, layout: Layout) -> str | None:
        sides = plane_of(layout.grid, self.name)
        for site in range(len(self.blocks(layout.depth))):
            for option, side in zip(AXES, sides, strict=True):
                removed = self._removed(option, site)
                if removed is not None and removed > side // 2:
                    return f"{option} must be at most half of the {side} that site {site} finds, got {removed}"
            sides = self.left(sides, site)
        return None

    def left(self, sides: Sides, site: int) -> Sides:
        """(rows, columns) that the ``site``-th site leaves of a grid of ``sides``."""
        rows, columns = (
            self._side(side, self._removed(option, site), site) for option, side in zip(AXES, sides, strict=True)
        )
        return rows, columns

    def found(self, grid: Sides, site: int) -> Sides:
        """(rows, columns) that the sites before the ``site``-th have left of a ``grid`` of patches."""
        for earlier in range(site):
            grid = self.left(grid, earlier)
        return grid

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        grid = plane_of(layout.grid, self.name)
        sides = self.found(grid, site)
        if sides == grid or math.prod(sides) == patches:
            return min(patches, math.prod(self.left(sides, site)))
        if patches == layout.patches:
            return patches  # where the sites before had left all of them, a further one would find nothing to do
        raise self._misplaced(sides, patches)

    def assign(self, view: View) -> Assignment:
        assert view.plane is not None
        rows, columns = self.found(view.plane, view.site)
        if view.count != rows * columns:
            raise self._misplaced((rows, columns), view.count)
        height, width = self.left((rows, columns), view.site)
        batch, _, channels = view.x.shape
        # Each row of every image is a line of its own, then each column of what the rows have become.
        lines = view.x.detach().reshape(batch * rows, columns, channels)
        sizes = view.size.reshape(batch * rows, columns)
        across = self._merge(lines, columns - width)
        places = torch.arange(columns, device=lines.device).expand(batch * rows, -1)
        short = move_tokens(lines, places, places, sizes, across)
        lines = short.x.view(batch, rows, width, channels).transpose(1, 2).reshape(batch * width, rows, channels)
        down = self._merge(lines, rows - height)
        # Both steps in one: which member leads each new token, and which new token every other member joins.
        row_led = down.keep.view(batch, width, height).transpose(1, 2)
        column_led = across.keep.view(batch, rows, width).gather(1, row_led)
        keep = (row_led * columns + column_led).flatten(1)
        column = short.slots.view(batch, rows, columns)
        row = slots(down).view(batch, width, rows).transpose(1, 2).gather(2, column)
        group = (row * width + column).flatten(1)
        moved = complement(keep, rows * columns)
        return Assignment(keep=keep, moved=moved, onto=group.gather(1, moved), reduce=self.value)

    def _misplaced(self, sides: Sides, found: int) -> TokensieveError:
        return TokensieveError(
            f"{self.name} acts on a grid of {sides[0]} × {sides[1]} tokens and finds {found} of them, since another "
            f"method has removed some: give it sites behind the last one of {self.name}"
        )

    def _merge(self, lines: Tensor, remove: int) -> Assignment:
        keep, moved, onto = merge_neighbours(lines, remove)
        return Assignment(keep=keep, moved=moved, onto=onto, reduce=self.value)

    def _removed(self, option: Literal["rows", "columns"], site: int) -> int | None:
        removed: int | tuple[int, ...] | None = getattr(self, option)
        return None if removed is None else per_site(removed, site)

    def _side(self, side: int, removed: int | None, site: int) -> int:
        """How much of one ``side`` of the grid is left; an image may have fewer rows than the model was made for."""
        if removed is None:
            return max(round(round(side * math.sqrt(per_site(self.keep, site)), 6)), side - side // 2)
        return side - min(removed, side // 2)


def merge_neighbours(lines: Tensor, remove: int) -> tuple[Tensor, Tensor, Tensor]:
    """In every line the ``remove`` tokens at odd places that are most like a neighbour merge into it.

    Args:
        lines: (L, W, C).
        remove: at most W // 2.

    Returns:
        ``keep`` (L, W - remove), the tokens that stay, ascending; ``moved`` (L, remove) the others by falling cosine,
        the earlier first where it is equal; ``onto`` (L, remove) the place in ``keep`` that each of them joins, the one
        before it where both neighbours are as similar.
    """
    length = lines.shape[1]
    if not remove:
        keep = torch.arange(length, device=lines.device).expand(lines.shape[0], -1)
        return keep, keep[:, :0], keep[:, :0]
    unit = unit_rows(lines)
    cosine = (unit[:, :-1] * unit[:, 1:]).sum(dim=2)
    before, behind = cosine[:, ::2], cosine[:, 1::2]
    behind = F.pad(behind, (0, before.shape[1] - behind.shape[1]), value=-torch.inf)
    order = rank_descending(torch.maximum(before, behind))[:, :remove]
    moved = 2 * order + 1
    gone = named(moved, length).cumsum(dim=1)
    onto = moved - gone.gather(1, moved) + (behind > before).gather(1, order)
    return complement(moved, length), moved, onto
