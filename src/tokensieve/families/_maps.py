"""Blocks whose tokens are a map (B, H, W, C), and that attend in windows of it or to all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.positions import along_axis, folded
from tokensieve.attention.tap import Tap
from tokensieve.attention.windows import Border, WindowRows
from tokensieve.families._halves import HalvesFamily, behind, heads_of
from tokensieve.families._layout import Grid
from tokensieve.families._modules import refuse_listeners
from tokensieve.tokens.form import Form, Map


@dataclass(frozen=True)
class Inside:
    """Places in windows.

    Attributes:
        rows, columns: (B, L) int64, counted inside of each token's window.
        sides: (rows, columns) of a window.
    """

    rows: Tensor
    columns: Tensor
    sides: tuple[int, int]

    @property
    def index(self) -> Tensor:
        """(B, L), the places counted row by row."""
        return self.rows * self.sides[1] + self.columns


@dataclass(frozen=True)
class Windows:
    """A grid of patches cut into windows from its upper left corner on; those at the border reach beyond it.

    Attributes:
        grid: (rows, columns) of patches.
        sides: (rows, columns) of a window.
        shift: by how many rows and columns the grid is rolled to the upper left before it is cut; what came from the
            other side then shares a window with its neighbours there, and not their attention.
        rolled: (rows, columns) of what is rolled: the ``grid``, or what the windows cover.
    """

    grid: tuple[int, int]
    sides: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    rolled: tuple[int, int] = (0, 0)

    @property
    def whole(self) -> bool:
        """Whether the whole grid is one window."""
        return self.sides == self.grid and not any(self.shift)

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows there are along each axis."""
        rows, columns = (-(-grid // side) for grid, side in zip(self.grid, self.sides, strict=True))
        return rows, columns

    @property
    def covered(self) -> tuple[int, int]:
        """(rows, columns) of all windows together."""
        rows, columns = (side * count for side, count in zip(self.sides, self.counts, strict=True))
        return rows, columns

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, L) the numbers of the windows of places in the grid of each image, (B, L)."""
        down, across = self.counts
        rows, columns = self._moved(rows, 0), self._moved(columns, 1)
        images = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        numbers = images * (down * across) + rows // self.sides[0] * across + columns // self.sides[1]
        if not any(self.shift):
            return numbers
        return numbers * 9 + self._region(rows, 0) * 3 + self._region(columns, 1)

    def inside(self, rows: Tensor, columns: Tensor) -> Inside:
        """The same places, counted inside of their windows."""
        return Inside(self._moved(rows, 0) % self.sides[0], self._moved(columns, 1) % self.sides[1], self.sides)

    def _moved(self, places: Tensor, axis: int) -> Tensor:
        """Places along an axis, once what is rolled is."""
        shift, length = self.shift[axis], self.rolled[axis]
        return torch.where(places < length, (places - shift) % length, places) if shift else places

    def _region(self, moved: Tensor, axis: int) -> Tensor:
        """Which of three parts of an axis places are in, that a shift brings together in its last windows."""
        end, side, shift = self.covered[axis], self.sides[axis], self.shift[axis]
        return (moved >= end - side).long() + (moved >= end - shift).long() if shift else torch.zeros_like(moved)

    def beyond(self, images: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """(rows, columns), both (B, P), of what is in the windows beyond the grid; None where nothing is."""
        if self.covered == self.grid:
            return None
        (high, wide), (rows, columns) = self.covered, self.grid
        strips = ((0, rows, columns, wide), (rows, high, 0, wide))  # to the right of it, and below
        places = [
            torch.cartesian_prod(torch.arange(top, bottom, device=device), torch.arange(left, right, device=device))
            for top, bottom, left, right in strips
        ]
        return tuple(part.expand(images, -1) for part in torch.cat(places).unbind(1))  # type: ignore[return-value]

    def told(self, positions: Tensor) -> dict[str, Any]:
        """What ``MapFamily.of_tokens`` is told of tokens at ``positions`` (B, L), row by row."""
        rows, columns = positions // self.grid[1], positions % self.grid[1]
        places = {"cut": self, "rows": rows, "columns": columns}
        if self.whole:
            return {**places, "windows": None, "outside": None, "beyond": None}
        outside = self.beyond(len(positions), positions.device)
        beyond = None if outside is None else self.of(*outside)
        return {**places, "windows": self.of(rows, columns), "outside": outside, "beyond": beyond}

    def cut(self, x: Tensor) -> Tensor:
        """(B · windows, rows, columns, C) from a map ``x`` (B, H, W, C), zero beyond its border."""
        (high, wide), (down, across) = self.sides, self.counts
        x = F.pad(x, (0, 0, 0, across * wide - self.grid[1], 0, down * high - self.grid[0]))
        x = x.view(len(x), down, high, across, wide, -1)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, high, wide, x.shape[-1])

    def joined(self, windows: Tensor) -> Tensor:
        """What ``cut`` was given, out of windows of any number of channels."""
        (high, wide), (down, across) = self.sides, self.counts
        x = windows.view(-1, down, across, high, wide, windows.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        x = x.contiguous().view(len(x), down * high, across * wide, -1)
        return x[:, : self.grid[0], : self.grid[1]].contiguous()


def halved(grid: Grid, times: int) -> Grid:
    """The axes of a map that was halved so many times, rounded up."""
    return tuple(-(-axis // 2**times) for axis in grid)


class MapFamily(HalvesFamily):
    """A family of blocks on maps, cut into ``windows``.

    With all tokens present a block's own attention runs, in its own windows. Once tokens have moved it runs by its
    parts: a token stays in the window, and keeps the relative position, of the patch whose place it has, and windows
    have as many tokens as are left in them.
    """

    in_parts = True

    def form(self, block: nn.Module, x: Tensor) -> Form | None:
        return Map(x.shape) if x.dim() == 4 else None

    def windows(self, block: Any, grid: Grid) -> Windows:
        """How ``block`` cuts a ``grid``. Default: into squares of its ``window_size``; 0: not at all."""
        whole, side = (grid[0], grid[1]), block.window_size
        return Windows(whole, (side, side) if side else whole)

    def windowed(self, owner: nn.Module) -> frozenset[int]:
        """The numbers of the blocks that attend in windows."""
        blocks: list[Any] = self.blocks(owner)
        return frozenset(number for number, block in enumerate(blocks) if block.window_size)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return self.windows(block, kwargs["grid"]).told(positions)

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        halves = self.halves(block)
        attention, form = getattr(block, halves.attention), self.form(block, x)
        if isinstance(form, Map):  # the map as the model has it
            x = x.movedim(form.channels, -1)
            windows, normed = self.windows(block, form.grid), self.attention_input(block, x)
            whole = self.of_map(block, attention, normed if windows.whole else windows.cut(normed))
            update = whole if windows.whole else windows.joined(whole)
            return halves.sum(x, behind(block, update, halves.behind1)).movedim(-1, form.channels)
        update = self.of_tokens(block, attention, self.attention_input(block, x), tap, **kwargs)
        return halves.sum(x, behind(block, update, halves.behind1))

    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        form = self.form(block, x)
        if isinstance(form, Map):
            return super().mlp(block, x.movedim(form.channels, -1)).movedim(-1, form.channels)
        return super().mlp(block, x)

    def of_map(self, block: Any, attention: Any, x: Tensor) -> Tensor:
        """What the block's own attention answers to maps ``x`` (B, H, W, C)."""
        out = attention(x)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def of_tokens(
        self,
        block: nn.Module,
        attention: Any,
        x: Tensor,
        tap: Tap,
        *,
        cut: Windows,
        rows: Tensor,
        columns: Tensor,
        windows: Tensor | None,
        outside: tuple[Tensor, Tensor] | None,
        beyond: Tensor | None,
    ) -> Tensor:
        """(B, L, C), the same of tokens ``x`` (B, L, C) at these ``rows`` and ``columns`` of the grid, both (B, L).

        ``outside`` are those of what is beyond the border of the map, and ``beyond`` the windows that it is in.
        """
        refuse_listeners(attention)
        heads = self.heads(attention, x)
        width = heads[2].shape[3]
        query, key, value, scale = self.with_positions(block, attention, *heads, cut.inside(rows, columns))
        border = None
        if outside is not None and beyond is not None:  # zero behind the norm
            zero = self.heads(attention, x.new_zeros(1, beyond.shape[1], x.shape[2]))
            asked, keys, values = (part.expand(len(x), -1, -1, -1) for part in zero)
            _, keys, values, _ = self.with_positions(block, attention, asked, keys, values, cut.inside(*outside))
            border = Border(beyond, keys, values)
        if windows is not None:
            tap.rows = WindowRows(windows, border)
        tap.own_channels = None if value.shape[3] == width else width
        dropout = self.dropout(attention) if attention.training else 0.0
        with tap:
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)
        return self.projected(attention, out[..., :width].transpose(1, 2).flatten(2))

    def heads(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, L, D) of tokens ``x`` (B, L, C), without positions. Default: by one layer."""
        query, key, value = attention.qkv(x).unflatten(2, (3, heads_of(attention)[0], -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def projected(self, attention: Any, x: Tensor) -> Tensor:
        """(B, L, C), what the attention makes of the joined answers of its heads."""
        return attention.proj(x)  # type: ignore[no-any-return]

    def dropout(self, attention: Any) -> float:
        """The probability by which the attention drops entries of its maps in training. Default: 0."""
        return 0.0

    def with_positions(
        self, block: nn.Module, attention: Any, query: Tensor, key: Tensor, value: Tensor, inside: Inside
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """The same with the places in their windows, and the scale of the logits. Default: decomposed relative
        positions, ``rel_pos_h`` and ``rel_pos_w``, where the attention has them."""
        scale = query.shape[3] ** -0.5
        if not hasattr(attention, "rel_pos_h"):
            return query, key, value, scale
        axes = zip((attention.rel_pos_h, attention.rel_pos_w), (inside.rows, inside.columns), inside.sides, strict=True)
        biases = [(along_axis(query, table, places, side), places) for table, places, side in axes]
        return *folded(query, key, value, scale, biases), 1.0
