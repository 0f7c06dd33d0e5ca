"""Attention in windows: each token attends to those of its own, however the tokens lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.attention.packing import Rows

FEW = 8  # calls of the kernel for windows of as many different numbers of tokens, before these are rounded up
STEP = 16  # what they are rounded up to a multiple of


@dataclass(frozen=True)
class Joined(Rows):
    """Sequences of as many tokens that attend to one another: the windows of an image, one behind the other.

    Attributes:
        count: W, how many each image has.
    """

    count: int

    def unpack_heads(self, x: Tensor) -> Tensor:
        """(B · W, H, L, D) from (B, H, W · L, D)."""
        return x.unflatten(2, (self.count, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[no-untyped-call,no-any-return]

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Let the tokens of all windows of an image attend to one another; ``bias`` is (B · W, 1, 1, L)."""
        joined = None if bias is None else bias.reshape(len(query), 1, 1, -1)
        return kernel(query, key, value, joined, **options)


@dataclass(frozen=True)
class Border:
    """What stands in windows beyond the border of an image: tokens that are attended to and do not attend.

    Attributes:
        windows: (B, P) int64, as those of the tokens.
        keys, values: (B, H, P, D).
    """

    windows: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class WindowRows(Rows):
    """Tokens in windows of any number of tokens.

    Attributes:
        windows: (B, L) int64, the number of each token's window; no two images share one.
        border: what else is in them, or None.
    """

    windows: Tensor
    border: Border | None = None

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Let every window attend to itself; windows of as many tokens go through the kernel together."""
        batch, heads, length, _ = query.shape
        biases = None if bias is None else bias.expand(batch, 1, 1, length).flatten(1)
        windows = self.windows
        if self.border is not None:
            windows = torch.cat([windows, self.border.windows], dim=1)
            key, value = torch.cat([key, self.border.keys], dim=2), torch.cat([value, self.border.values], dim=2)
            biases = None if biases is None else F.pad(biases, (0, self.border.windows.shape[1]))
        if torch.compiler.is_compiling():  # shapes in graphs cannot depend on the data
            return _masked(self.windows, windows, query, key, value, biases, options)
        # All tokens of all images, window by window.
        number = int(windows.max()) + 1
        asking, asked = Sorted.of(self.windows, number), Sorted.of(windows, number)
        queries = asking.rows(query)
        keys, values = asked.rows(key), asked.rows(value)
        biases = None if biases is None else biases.flatten().index_select(0, asked.order)
        out = value.new_empty(batch * length, heads, value.shape[3])
        # One call for each pair of numbers of tokens that ask and are asked.
        for members, rows, columns in _alike(asking.counts, asked.counts):
            ask, asks = asking.places(members, rows)
            take, taken = asked.places(members, columns)
            parts = (part.transpose(1, 2) for part in (queries[ask], keys[take], values[take]))
            offset = _offset(biases, take, taken)
            answer = kernel(*parts, offset, **options).transpose(1, 2).to(out.dtype)
            out[ask if asks is None else ask[asks]] = answer if asks is None else answer[asks]
        whole = torch.empty_like(out).index_copy(0, asking.order, out)
        return whole.view(batch, length, heads, -1).transpose(1, 2)


@dataclass(frozen=True)
class Sorted:
    """Tokens window by window.

    Attributes:
        order: (T,) which of them comes where.
        counts, starts: (W,) how many each window has, and where they begin.
    """

    order: Tensor
    counts: Tensor
    starts: Tensor

    @staticmethod
    def of(windows: Tensor, number: int) -> Sorted:
        """Those of ``windows`` (B, L), of which there are ``number``."""
        flat = windows.flatten()
        counts = torch.bincount(flat, minlength=number)
        return Sorted(flat.argsort(stable=True), counts, counts.cumsum(0) - counts)

    def rows(self, x: Tensor) -> Tensor:
        """(T, H, D) from queries, keys or values (B, H, L, D)."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.order)

    def places(self, members: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """(W, count) the places of the tokens of the windows ``members`` (W,), and which of them are tokens, where a
        window has fewer; else None."""
        slots = torch.arange(count, device=members.device)
        counts = self.counts[members].unsqueeze(1)
        there = slots < counts
        if bool(there.all()):
            return self.starts[members].unsqueeze(1) + slots, None
        return self.starts[members].unsqueeze(1) + torch.minimum(slots, counts - 1), there


def _alike(asking: Tensor, asked: Tensor) -> list[tuple[Tensor, int, int]]:
    """The windows that go through the kernel together: their numbers, and how many tokens ask and are asked in each.

    Windows in which nobody asks are left out. Of more than a few different numbers some are rounded up.
    """
    pairs = torch.stack([asking, asked])
    found = pairs[:, asking > 0].unique(dim=1)
    if found.shape[1] > FEW:
        largest = pairs.amax(dim=1, keepdim=True)
        pairs = torch.minimum((pairs + STEP - 1) // STEP * STEP, largest)
        found = pairs[:, asking > 0].unique(dim=1)
    return [
        (((pairs == pair.unsqueeze(1)).all(dim=0) & (asking > 0)).nonzero().squeeze(1), *map(int, pair.tolist()))
        for pair in found.unbind(1)
    ]


def _offset(biases: Tensor | None, take: Tensor, there: Tensor | None) -> Tensor | None:
    """(W, 1, 1, count) on the logits of the keys: their ``biases`` (T,), and minus infinity where there is none."""
    if biases is None and there is None:
        return None
    offset = torch.zeros(take.shape, device=take.device) if biases is None else biases[take]
    offset = offset if there is None else offset.masked_fill(~there, -torch.inf)
    return offset[:, None, None]


def _masked(
    asking: Tensor,
    asked: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    biases: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The same by one call over all tokens with a mask, which holds a number for each pair of them."""
    apart = (asking.unsqueeze(2) != asked.unsqueeze(1)).unsqueeze(1)
    mask = torch.zeros(apart.shape, dtype=query.dtype, device=query.device)
    mask = mask if biases is None else mask + biases[:, None, None].to(query.dtype)
    mask = mask.masked_fill(apart, -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
