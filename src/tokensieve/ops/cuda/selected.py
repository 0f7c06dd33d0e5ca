"""ToSA's selector and the column sums of what it predicts, in two passes like ``columns``: no logits are ever stored.

A tile holds the logits of a few rows and keys for all heads side by side; the selector's two convolutions of width 1
turn them into those of the predicted map there and then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.columns import load_bias, load_rows
from tokensieve.ops.cuda.launch import blocks, launch, power_of_two

ROWS = 16  # query rows of a tile
PROGRAMS = 256  # enough for a large GPU: fewer rows share the keys of each among more programs


@triton.jit
def _predicted(
    first_query, first_key, bias, expand, expand_bias, reduce, reduce_bias, scale,
    queries_head, queries_token, keys_head, keys_token, image, bias_image, bias_token, rows, tokens,
    heads, length, stride, count, dim, hidden,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The logits that the selector predicts, (ROWS, KEYS, HEADS); minus infinity behind the last key."""
    units, outputs = tl.arange(0, HIDDEN), tl.arange(0, HEADS)
    known = units < hidden
    shift = load_bias(bias, image, bias_image, bias_token, tokens, length)
    there = (tokens < length)[None, :]
    half: tl.constexpr = expand.dtype.element_ty != tl.float32
    inner = tl.zeros([ROWS, KEYS, HEADS if half else HIDDEN], tl.float32)
    for head in range(heads):
        query = load_rows(first_query + head * queries_head, rows, stride * queries_token, count, dim, DIM)
        key = load_rows(first_key + head * keys_head, tokens, keys_token, length, dim, DIM)
        logit = tl.where(there, tl.dot(query, tl.trans(key), input_precision="ieee") * scale + shift, 0.0)
        if half:
            inner = tl.where(outputs[None, None, :] == head, logit[:, :, None], inner)
        else:
            factor = tl.load(expand + units * heads + head, mask=known, other=0.0)
            inner += logit[:, :, None] * factor[None, None, :]
    inside = known[:, None] & (outputs < heads)[None, :]
    if half:
        # In half precision the heads' logits are set side by side, and the first convolution is a matrix product for
        # tensor cores. Float32 has none that are exact: there each head is added as it comes, without the padding.
        factor = tl.load(expand + units[None, :] * heads + outputs[:, None], mask=tl.trans(inside), other=0.0)
        inner = tl.dot(tl.reshape(inner, [ROWS * KEYS, HEADS]).to(factor.dtype), factor)
    else:
        inner = tl.reshape(inner, [ROWS * KEYS, HIDDEN])
    inner += tl.load(expand_bias + units, mask=known, other=0.0).to(tl.float32)[None, :]
    inner = tl.maximum(inner, 0.0)
    mix = tl.load(reduce + outputs[None, :] * hidden + units[:, None], mask=inside, other=0.0)
    out = tl.dot(inner.to(mix.dtype), mix, input_precision="ieee")
    out += tl.load(reduce_bias + outputs, mask=outputs < heads, other=0.0).to(tl.float32)[None, :]
    return tl.where(there[:, :, None], tl.reshape(out, [ROWS, KEYS, HEADS]), float("-inf"))


@triton.jit(do_not_specialize=["length", "stride", "count", "span"])
def _selected_rows(
    queries, keys, bias, expand, expand_bias, reduce, reduce_bias, peaks, totals, scale,
    queries_image, queries_head, queries_token, keys_image, keys_head, keys_token, bias_image, bias_token,
    heads, length, stride, count, dim, hidden, span,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The largest predicted logit of each row and head among ``span`` keys, and the sum of the exponentials."""
    part, image = tl.program_id(2), tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    peak = tl.full([ROWS, HEADS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, HEADS], tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, length), KEYS):
        logit = _predicted(
            queries + image * queries_image, keys + image * keys_image,
            bias, expand, expand_bias, reduce, reduce_bias, scale, queries_head, queries_token, keys_head, keys_token,
            image, bias_image, bias_token, rows, start + tl.arange(0, KEYS), heads, length, stride, count, dim, hidden,
            ROWS, KEYS, DIM, HIDDEN, HEADS,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(logit, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - safe) + tl.sum(tl.exp(logit - safe[:, None, :]), axis=1)
        peak = higher
    outputs = tl.arange(0, HEADS)[None, :]
    place = ((image * tl.num_programs(2) + part) * count + rows[:, None]) * heads + outputs
    inside = (rows < count)[:, None] & (outputs < heads)
    tl.store(peaks + place, peak, mask=inside)
    tl.store(totals + place, total, mask=inside)


@triton.jit(do_not_specialize=["length", "stride", "count", "parts"])
def _selected_columns(
    queries, keys, bias, expand, expand_bias, reduce, reduce_bias, peaks, totals, out, scale,
    queries_image, queries_head, queries_token, keys_image, keys_head, keys_token, bias_image, bias_token,
    heads, length, stride, count, dim, hidden, parts,
    LOGARITHM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """The sums over all rows of a block of columns, for every head."""
    image = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    outputs = tl.arange(0, HEADS)[None, :]
    sums = tl.zeros([KEYS, HEADS], tl.float32)
    for start in range(0, count, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < count)[:, None] & (outputs < heads)
        place = (image * parts * count + rows[:, None]) * heads + outputs
        peak = tl.load(peaks + place, mask=inside, other=0.0)
        total = tl.load(totals + place, mask=inside, other=1.0)
        for _ in range(1, parts):
            place += count * heads
            other = tl.load(peaks + place, mask=inside, other=0.0)
            higher = tl.maximum(peak, other)
            total *= tl.exp(peak - higher)
            total += tl.load(totals + place, mask=inside, other=0.0) * tl.exp(other - higher)
            peak = higher
        peak, total = peak[:, None, :], total[:, None, :]
        logit = _predicted(
            queries + image * queries_image, keys + image * keys_image,
            bias, expand, expand_bias, reduce, reduce_bias, scale, queries_head, queries_token, keys_head, keys_token,
            image, bias_image, bias_token, rows, tokens, heads, length, stride, count, dim, hidden,
            ROWS, KEYS, DIM, HIDDEN, HEADS,
        )  # fmt: skip
        part = logit - peak - tl.log(total) if LOGARITHM else tl.exp(logit - peak) / total
        sums += tl.sum(tl.where(inside[:, None, :], part, 0.0), axis=0)
    place = (image * heads + outputs) * length + tokens[:, None]
    tl.store(out + place, sums, mask=(tokens < length)[:, None] & (outputs < heads))


def selected_columns(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    bias: Tensor | None,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    stride: int,
    logarithm: bool,
) -> Tensor:
    """Column sums (B, H, L) of the map that a selector predicts.

    Args:
        queries, keys: (B, H, L, D).
        scale: factor of the logits.
        bias: (B, L) added to the logits of every key, or None.
        weights: expand (E, H), its bias (E,), reduce (H, E) and its bias (H,), contiguous.
        stride: distance between the query rows read.
        logarithm: sum log-probabilities instead of probabilities.
    """
    batch, heads, length, dim = keys.shape
    hidden, count = weights[0].shape[0], blocks(length, stride)
    side = 32 if hidden <= 32 else 16
    rows, columns = blocks(count, ROWS), blocks(length, side)
    span = side * blocks(columns, max(1, min(16, PROGRAMS // (batch * rows))))
    parts = blocks(length, span)
    peaks, totals = torch.empty(2, batch, parts, count, heads, dtype=torch.float32, device=keys.device).unbind()
    out = torch.empty(batch, heads, length, dtype=torch.float32, device=keys.device)
    tiles = {
        "ROWS": ROWS,
        "KEYS": side,
        "DIM": power_of_two(dim, 16),
        "HIDDEN": power_of_two(hidden, 16),
        "HEADS": power_of_two(heads, 16),
        "num_warps": 8,
    }
    steps = (*queries.stride()[:3], *keys.stride()[:3], *((0, 0) if bias is None else bias.stride()))
    sizes = (heads, length, stride, count, dim, hidden)
    given = (queries, keys, bias, *weights, peaks, totals)
    launch(_selected_rows, (rows, batch, parts), *given, scale, *steps, *sizes, span, **tiles)
    grid = (columns, batch)
    launch(_selected_columns, grid, *given, out, scale, *steps, *sizes, parts, LOGARITHM=logarithm, **tiles)
    return out
