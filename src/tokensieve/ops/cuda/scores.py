"""Class attention: one query's row of the attention map, without the map."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two

TILE = 8192  # entries of the keys that a program holds


@triton.jit(do_not_specialize=["length"])
def _class_logits(
    queries,
    keys,
    bias,
    logits,
    peaks,
    totals,
    scale,
    queries_image,
    queries_head,
    keys_image,
    keys_head,
    keys_token,
    bias_image,
    bias_token,
    heads,
    length,
    dim,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The first query's logits for a block of keys, the largest of them and the sum of their exponentials."""
    part, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    lanes = tl.arange(0, DIM)
    query = tl.load(queries + image * queries_image + head * queries_head + lanes, mask=lanes < dim, other=0.0)
    query = query.to(tl.float32) * scale
    tokens = part * KEYS + tl.arange(0, KEYS)
    there = tokens < length
    first_key = keys + image * keys_image + head * keys_head
    inside = there[:, None] & (lanes < dim)[None, :]
    key = tl.load(first_key + tokens[:, None] * keys_token + lanes[None, :], mask=inside, other=0.0).to(tl.float32)
    logit = tl.sum(key * query[None, :], axis=1)
    if bias is not None:
        logit += tl.load(bias + image * bias_image + tokens * bias_token, mask=there, other=0.0).to(tl.float32)
    logit = tl.where(there, logit, float("-inf"))
    peak = tl.max(logit, axis=0)
    safe = tl.where(peak == float("-inf"), 0.0, peak)  # nothing but padding here
    row = image * heads + head
    tl.store(logits + row * length + tokens, logit, mask=there)
    tl.store(peaks + row * tl.num_programs(0) + part, peak)
    tl.store(totals + row * tl.num_programs(0) + part, tl.sum(tl.exp(logit - safe), axis=0))


@triton.jit(do_not_specialize=["heads", "length", "parts"])
def _class_means(logits, peaks, totals, out, heads, length, parts, KEYS: tl.constexpr, PARTS: tl.constexpr):
    """The mean over heads of the softmax of the logits, for a block of keys."""
    image = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    lanes = tl.arange(0, PARTS)
    sums = tl.zeros([KEYS], tl.float32)
    for head in range(heads):
        row = image * heads + head
        peak = tl.load(peaks + row * parts + lanes, mask=lanes < parts, other=float("-inf"))
        total = tl.load(totals + row * parts + lanes, mask=lanes < parts, other=0.0)
        highest = tl.max(peak, axis=0)
        logit = tl.load(logits + row * length + tokens, mask=tokens < length, other=float("-inf"))
        sums += tl.exp(logit - highest) / tl.sum(total * tl.exp(peak - highest), axis=0)
    tl.store(out + image * length + tokens, sums / heads, mask=tokens < length)


def class_attention(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Queries and keys (B, H, L, D), bias (B, L) or None, to the first query's attention, mean over heads: (B, L)."""
    batch, heads, length, dim = keys.shape
    width = power_of_two(dim, 16)
    held = max(16, TILE // width)
    parts = blocks(length, held)
    logits = torch.empty(batch, heads, length, dtype=torch.float32, device=keys.device)
    peaks, totals = torch.empty(2, batch, heads, parts, dtype=torch.float32, device=keys.device).unbind()
    out = torch.empty(batch, length, dtype=torch.float32, device=keys.device)
    launch(
        _class_logits,
        (parts, heads, batch),
        *(queries, keys, bias, logits, peaks, totals, scale),
        *(*queries.stride()[:2], *keys.stride()[:3], *((0, 0) if bias is None else bias.stride())),
        *(heads, length, dim),
        KEYS=held,
        DIM=width,
    )
    block = min(256, power_of_two(length, 16))
    sizes = (heads, length, parts)
    grid = (blocks(length, block), batch)
    launch(_class_means, grid, logits, peaks, totals, out, *sizes, KEYS=block, PARTS=power_of_two(parts))
    return out
