"""Column sums of attention maps in two passes, without a map: first what each row sums to, then the columns.

A program owns a block of rows in the first pass and a block of columns in the second, so that nothing is added
atomically and the sums come out the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two


@triton.jit
def load_rows(first, rows, step, count, dim, DIM: tl.constexpr):
    """Rows of a head, (len(rows), DIM), zero outside."""
    lanes = tl.arange(0, DIM)
    inside = (rows < count)[:, None] & (lanes < dim)[None, :]
    return tl.load(first + rows[:, None] * step + lanes[None, :], mask=inside, other=0.0)


@triton.jit
def load_bias(bias, image, bias_image, bias_token, tokens, length):
    """The bias of each key as a row (1, len(tokens)), minus infinity behind the last key."""
    there = tokens < length
    if bias is not None:
        values = tl.load(bias + image * bias_image + tokens * bias_token, mask=there, other=float("-inf"))
        return values.to(tl.float32)[None, :]
    else:
        return tl.where(there, 0.0, float("-inf"))[None, :]


@triton.jit(do_not_specialize=["length", "stride", "count"])
def _row_sums(
    queries,
    keys,
    bias,
    peaks,
    totals,
    scale,
    queries_image,
    queries_head,
    queries_token,
    keys_image,
    keys_head,
    keys_token,
    bias_image,
    bias_token,
    heads,
    length,
    stride,
    count,
    dim,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The largest logit of each query row and the sum of the exponentials relative to it."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_query = queries + image * queries_image + head * queries_head
    first_key = keys + image * keys_image + head * keys_head
    query = load_rows(first_query, rows, stride * queries_token, count, dim, DIM)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, KEYS):
        tokens = start + tl.arange(0, KEYS)
        key = load_rows(first_key, tokens, keys_token, length, dim, DIM)
        logit = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        logit += load_bias(bias, image, bias_image, bias_token, tokens, length)
        higher = tl.maximum(peak, tl.max(logit, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing but padding so far
        total = total * tl.exp(peak - safe) + tl.sum(tl.exp(logit - safe[:, None]), axis=1)
        peak = higher
    place = (image * heads + head) * count + rows
    tl.store(peaks + place, peak, mask=rows < count)
    tl.store(totals + place, total, mask=rows < count)


@triton.jit(do_not_specialize=["length", "stride", "count"])
def _column_sums(
    queries,
    keys,
    bias,
    peaks,
    totals,
    voters,
    out,
    scale,
    queries_image,
    queries_head,
    queries_token,
    keys_image,
    keys_head,
    keys_token,
    bias_image,
    bias_token,
    voters_image,
    heads,
    length,
    stride,
    count,
    dim,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The sums over all rows of a block of columns."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    first_query = queries + image * queries_image + head * queries_head
    first_key = keys + image * keys_image + head * keys_head
    key = tl.trans(load_rows(first_key, tokens, keys_token, length, dim, DIM))
    shift = load_bias(bias, image, bias_image, bias_token, tokens, length)
    sums = tl.zeros([KEYS], tl.float32)
    for start in range(0, count, ROWS):
        rows = start + tl.arange(0, ROWS)
        place = (image * heads + head) * count + rows
        peak = tl.load(peaks + place, mask=rows < count, other=0.0)
        share = 1.0 / tl.load(totals + place, mask=rows < count, other=1.0)
        if voters is not None:
            share *= tl.load(voters + image * voters_image + rows * stride, mask=rows < count, other=0).to(tl.float32)
        share = tl.where(rows < count, share, 0.0)
        query = load_rows(first_query, rows, stride * queries_token, count, dim, DIM)
        logit = tl.dot(query, key, input_precision="ieee") * scale + shift
        sums += tl.sum(tl.exp(logit - peak[:, None]) * share[:, None], axis=0)
    tl.store(out + (image * heads + head) * length + tokens, sums, mask=tokens < length)


def column_sums(
    queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None, voters: Tensor | None, stride: int
) -> Tensor:
    """Queries and keys (B, H, L, D), bias and voters (B, L) or None, to the column sums (B, H, L)."""
    batch, heads, length, dim = keys.shape
    count = blocks(length, stride)
    peaks = torch.empty(batch, heads, count, dtype=torch.float32, device=keys.device)
    totals = torch.empty_like(peaks)
    out = torch.empty(batch, heads, length, dtype=torch.float32, device=keys.device)
    width = power_of_two(dim, 16)
    side = 64 if width * keys.element_size() <= 256 else 32  # two tiles of a head fit the shared memory
    tiles = {"ROWS": min(side, power_of_two(count, 16)), "KEYS": side, "DIM": width}
    steps = (*queries.stride()[:3], *keys.stride()[:3], *((0, 0) if bias is None else bias.stride()))
    sizes = (heads, length, stride, count, dim)
    grid = (blocks(count, tiles["ROWS"]), heads, batch)
    launch(_row_sums, grid, queries, keys, bias, peaks, totals, scale, *steps, *sizes, **tiles)
    grid = (blocks(length, side), heads, batch)
    step = 0 if voters is None else voters.stride(0)
    launch(_column_sums, grid, queries, keys, bias, peaks, totals, voters, out, scale, *steps, step, *sizes, **tiles)
    return out
