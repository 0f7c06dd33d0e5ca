"""ToMe's matching: every a's best b without a matrix of similarities, and the best of these edges without a sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two
from tokensieve.ops.cuda.ordering import highest, ordered

SIDE = 64  # tokens of either side in a tile of similarities
CHANNELS = 32  # channels multiplied at a time
TILE = 8192  # comparisons at a time while ranking
PROGRAMS = 256  # enough for a large GPU: fewer images share the b's of each among more programs


@triton.jit
def _channels(metric, tokens, count, step, lanes, dim):
    inside = (tokens < count)[:, None] & (lanes < dim)[None, :]
    return tl.load(metric + tokens[:, None] * step + lanes[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["length_a", "length_b", "span"])
def _best_partners(
    metric,
    score,
    partner,
    metric_image,
    metric_token,
    first,
    length_a,
    length_b,
    span,
    dim,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The highest cosine of each a with ``span`` of the b's, NaN as infinity, and the first b that has it."""
    part, image = tl.program_id(2), tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    side_a = metric + image * metric_image + first * metric_token
    side_b = metric + image * metric_image + (1 - first) * metric_token
    best = tl.full([SIDE], float("-inf"), tl.float32)
    where = tl.zeros([SIDE], tl.int32)
    for start in range(part * span, tl.minimum((part + 1) * span, length_b), SIDE):
        columns = start + tl.arange(0, SIDE)
        products = tl.zeros([SIDE, SIDE], tl.float32)
        squares_a, squares_b = tl.zeros([SIDE], tl.float32), tl.zeros([SIDE], tl.float32)
        for channel in range(0, dim, CHANNELS):
            lanes = channel + tl.arange(0, CHANNELS)
            a = _channels(side_a, rows, length_a, 2 * metric_token, lanes, dim)
            b = _channels(side_b, columns, length_b, 2 * metric_token, lanes, dim)
            products = tl.dot(a, tl.trans(b), products, input_precision="ieee")
            squares_a += tl.sum(a * a, axis=1)
            squares_b += tl.sum(b * b, axis=1)
        norm_a, norm_b = tl.maximum(tl.sqrt_rn(squares_a), 1e-12), tl.maximum(tl.sqrt_rn(squares_b), 1e-12)
        cosine = tl.div_rn(tl.div_rn(products, norm_a[:, None]), norm_b[None, :])
        cosine = tl.where(cosine != cosine, float("inf"), cosine)
        cosine = tl.where((columns < length_b)[None, :], cosine, float("-inf"))
        higher = tl.max(cosine, axis=1)
        place = tl.min(tl.where(cosine == higher[:, None], columns[None, :], length_b - 1), axis=1)
        where = tl.where(higher > best, place, where)
        best = tl.maximum(best, higher)
    place = (image * tl.num_programs(2) + part) * length_a + rows
    tl.store(score + place, best, mask=rows < length_a)
    tl.store(partner + place, where, mask=rows < length_a)


@triton.jit
def _edges(score, partner, tokens, length_a, parts):
    """The best edge of each a over all parts of the b's, as a key to sort by, and its b; 0 for no token."""
    here = tokens < length_a
    best = tl.load(score + tokens, mask=here, other=0.0)
    where = tl.load(partner + tokens, mask=here, other=0)
    for part in range(1, parts):
        place = part * length_a + tokens
        other = tl.load(score + place, mask=here, other=0.0)
        where = tl.where(other > best, tl.load(partner + place, mask=here, other=0), where)
        best = tl.maximum(best, other)
    return tl.where(here, ordered(best), 0).to(tl.uint32), where


@triton.jit(do_not_specialize=["length_a", "length_b", "parts", "remove"])
def _arrange(
    score,
    partner,
    keep,
    moved,
    onto,
    first,
    length_a,
    length_b,
    parts,
    remove,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rank the edges by counting and write which tokens move; the last program of an image writes which stay."""
    image = tl.program_id(1).to(tl.int64)
    score += image * parts * length_a
    partner += image * parts * length_a
    lanes = tl.arange(0, BLOCK)
    keys, _ = _edges(score, partner, lanes, length_a, parts)
    lanes, keys = lanes[None, :], keys[None, :]
    there = lanes < length_a
    staying = length_a - remove
    if tl.program_id(0) < tl.num_programs(0) - 1:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        own, joined = _edges(score, partner, rows, length_a, parts)
        ahead = (keys > own[:, None]) | ((keys == own[:, None]) & there & (lanes < rows[:, None]))
        rank = tl.sum(ahead.to(tl.int32), axis=1)
        moves = (rows < length_a) & (rank < remove)
        tl.store(moved + image * remove + rank, (2 * rows + first).to(tl.int64), mask=moves)
        tl.store(onto + image * remove + rank, (joined + staying).to(tl.int64), mask=moves)
    else:
        stays = there & (highest(keys, remove) == 0)
        place = tl.cumsum(stays.to(tl.int32), axis=1) - 1
        kept = keep + image * (staying + length_b)
        tl.store(kept + place, (2 * lanes + first).to(tl.int64), mask=stays)
        # Side b has at most one token more than side a.
        for start in range(0, length_b, BLOCK):
            tokens = start + lanes
            tl.store(kept + staying + tokens, (2 * tokens + 1 - first).to(tl.int64), mask=tokens < length_b)


def bipartite_matching(metric: Tensor, remove: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ``tokensieve.ops.matching.bipartite_matching``."""
    batch, length, dim = metric.shape
    length_a = (length + 1 - first) // 2
    length_b = length - length_a
    columns = blocks(length_b, SIDE)
    span = SIDE * blocks(columns, max(1, min(8, PROGRAMS // (batch * blocks(length_a, SIDE)))))
    parts = blocks(length_b, span)
    score = torch.empty(batch, parts, length_a, dtype=torch.float32, device=metric.device)
    partner = torch.empty(batch, parts, length_a, dtype=torch.int32, device=metric.device)
    keep = torch.empty(batch, length - remove, dtype=torch.int64, device=metric.device)
    moved = torch.empty(batch, remove, dtype=torch.int64, device=metric.device)
    onto = torch.empty_like(moved)
    steps = metric.stride()[:2]
    sizes = (first, length_a, length_b)
    whole = (blocks(length_a, SIDE), batch, parts)
    launch(_best_partners, whole, metric, score, partner, *steps, *sizes, span, dim, SIDE=SIDE, CHANNELS=CHANNELS)
    block = power_of_two(length_a, 16)
    rows = max(1, min(64, TILE // block))
    grid = (blocks(length_a, rows) + 1, batch)
    launch(_arrange, grid, score, partner, keep, moved, onto, *sizes, parts, remove, ROWS=rows, BLOCK=block)
    return keep, moved, onto
