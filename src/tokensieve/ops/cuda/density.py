"""Density peaks from the inner products of the features: one program an image, or one launch a step for many tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two
from tokensieve.ops.cuda.ordering import highest, ordered, threshold
from tokensieve.ops.cuda.select import write_split

ALONE = 256  # tokens that one program can cluster
TILE = 8192  # distances at a time


@triton.jit
def _squared(products, rows, columns, length, dim, inside):
    """Squared distances of (R, 1) to (1, N) tokens, read above the diagonal so that i to j is j to i."""
    low, high = tl.minimum(rows, columns), tl.maximum(rows, columns)
    product = tl.load(products + low * length + high, mask=inside, other=0.0)
    first = tl.load(products + rows * (length + 1), mask=rows < length, other=0.0)
    second = tl.load(products + columns * (length + 1), mask=columns < length, other=0.0)
    distance = (first + second) - 2.0 * product
    apart = inside & (rows != columns) & (distance > 0.0)
    return tl.where(apart, tl.div_rn(distance, dim.to(tl.float32)), 0.0)


@triton.jit
def _density(
    products,
    density,
    widest,
    start,
    length,
    dim,
    neighbours,
    NEAR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The density of the tokens from ``start``, and their largest squared distance to any other."""
    rows, columns = (start + tl.arange(0, ROWS))[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (rows < length) & (columns < length)
    squared = _squared(products, rows, columns, length, dim, inside)
    if NEAR:
        # The nearest and the token itself, which adds nothing.
        keys = tl.where(inside, squared.to(tl.uint32, bitcast=True) ^ 0xFFFFFFFF, 0).to(tl.uint32)
        least = threshold(keys, neighbours + 1, ROWS)[:, None]
        nearer = keys > least
        level = neighbours + 1 - tl.sum(nearer.to(tl.int32), axis=1)
        furthest = tl.max(tl.where(keys >= least, squared, 0.0) * inside, axis=1)
        total = tl.sum(tl.where(nearer, squared, 0.0), axis=1) + level * furthest
        mean = tl.div_rn(total, neighbours.to(tl.float32))
    else:
        mean = tl.div_rn(tl.sum(squared, axis=1), length.to(tl.float32))
    own = start + tl.arange(0, ROWS)
    tl.store(density + own, tl.exp(-mean), mask=own < length)
    tl.store(widest + own, tl.max(squared, axis=1), mask=own < length)


@triton.jit
def _score(products, density, widest, score, start, length, dim, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Density times the distance to the nearest denser token, for the tokens from ``start``."""
    rows, columns = (start + tl.arange(0, ROWS))[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (rows < length) & (columns < length)
    squared = _squared(products, rows, columns, length, dim, inside)
    own = tl.load(density + rows, mask=rows < length, other=0.0)
    others = tl.load(density + columns, mask=columns < length, other=0.0)
    denser = inside & ((others > own) | ((others == own) & (columns < rows)))
    delta = tl.min(tl.where(denser, squared, float("inf")), axis=1)
    largest = tl.max(tl.load(widest + columns, mask=columns < length, other=0.0), axis=1)
    delta = tl.sqrt_rn(tl.minimum(delta, largest))
    tokens = start + tl.arange(0, ROWS)
    mine = tl.load(density + tokens, mask=tokens < length, other=0.0)
    tl.store(score + tokens, mine * delta, mask=tokens < length)


@triton.jit
def _split(score, image, centres, others, length, clusters, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)[None, :]
    values = tl.load(score + lanes, mask=lanes < length, other=0.0)
    chosen = highest(tl.where(lanes < length, ordered(values), 0).to(tl.uint32), clusters)
    write_split(chosen, length, clusters, image, centres, others, BLOCK)


@triton.jit
def _join(products, centres, others, onto, start, length, dim, clusters, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The nearest centre, the first of equally near ones, of the other tokens from ``start``."""
    places = start + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    rest = length - clusters
    rows = tl.load(others + places, mask=places < rest, other=0).to(tl.int32)[:, None]
    columns = tl.load(centres + lanes, mask=lanes < clusters, other=0).to(tl.int32)[None, :]
    inside = (places < rest)[:, None] & (lanes < clusters)[None, :]
    squared = _squared(products, rows, columns, length, dim, inside)
    squared = tl.where((lanes < clusters)[None, :], squared, float("inf"))
    nearest = tl.min(squared, axis=1)
    first = tl.min(tl.where(squared == nearest[:, None], lanes[None, :], clusters - 1), axis=1)
    tl.store(onto + places, first.to(tl.int64), mask=places < rest)


@triton.jit(do_not_specialize=["length", "dim", "clusters", "neighbours"])
def _peaks(
    products,
    density,
    widest,
    score,
    centres,
    others,
    onto,
    length,
    dim,
    clusters,
    neighbours,
    PHASE: tl.constexpr,
    NEAR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Phases 0 (densities), 1 (scores), 2 (centres), 3 (clusters) on blocks of rows, or all by one program (4)."""
    image = tl.program_id(1).to(tl.int64)
    products += image * length * length
    density += image * length
    widest += image * length
    score += image * length
    mine, rest = centres + image * clusters, others + image * (length - clusters)
    onto += image * (length - clusters)
    own = tl.program_id(0) * ROWS
    if PHASE == 0:
        _density(products, density, widest, own, length, dim, neighbours, NEAR, ROWS, BLOCK)
    if PHASE == 1:
        _score(products, density, widest, score, own, length, dim, ROWS, BLOCK)
    if PHASE == 2:
        _split(score, image, centres, others, length, clusters, BLOCK)
    if PHASE == 3:
        _join(products, mine, rest, onto, own, length, dim, clusters, ROWS, BLOCK)
    if PHASE == 4:
        for start in range(0, length, ROWS):
            _density(products, density, widest, start, length, dim, neighbours, NEAR, ROWS, BLOCK)
        tl.debug_barrier()
        for start in range(0, length, ROWS):
            _score(products, density, widest, score, start, length, dim, ROWS, BLOCK)
        tl.debug_barrier()
        _split(score, image, centres, others, length, clusters, BLOCK)
        tl.debug_barrier()
        for start in range(0, length - clusters, ROWS):
            _join(products, mine, rest, onto, start, length, dim, clusters, ROWS, BLOCK)


def density_peaks(features: Tensor, clusters: int, neighbours: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """See ``tokensieve.ops.density.density_peaks``."""
    batch, length, dim = features.shape
    with torch.autocast("cuda", enabled=False):
        features = features.float()
        products = features @ features.transpose(1, 2)
    density, widest, score = torch.empty(3, batch, length, dtype=torch.float32, device=features.device).unbind()
    centres = torch.empty(batch, clusters, dtype=torch.int64, device=features.device)
    others = torch.empty(batch, length - clusters, dtype=torch.int64, device=features.device)
    onto = torch.empty_like(others)
    block = power_of_two(length, 16)
    given = (products, density, widest, score, centres, others, onto, length, dim, clusters, neighbours or 0)
    shape = {
        "NEAR": neighbours is not None,
        "ROWS": max(1, min(64, TILE // block)),
        "BLOCK": block,
        "num_warps": 8,
        "num_stages": 1,  # stages would read ahead of a barrier
    }
    if length <= ALONE:
        launch(_peaks, (1, batch), *given, PHASE=4, **shape)
        return centres, others, onto
    rows = blocks(length, shape["ROWS"])
    for phase, grid in enumerate((rows, rows, 1, blocks(length - clusters, shape["ROWS"]))):
        launch(_peaks, (grid, batch), *given, PHASE=phase, **shape)
    return centres, others, onto
