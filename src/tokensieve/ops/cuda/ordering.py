"""Floats as integers in the order in which torch sorts them, and the highest of them, without a sort."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered(score):
    """float32 to uint32 in the same order: both zeros are equal, NaN is above all, and 0 is left for padding."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.uint32, bitcast=True)
    keys = tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(score != score, 0xFFFFFFFF, keys).to(tl.uint32)


@triton.jit
def threshold(keys, count, ROWS: tl.constexpr):
    """The ``count``-th highest of each row of ``keys`` (ROWS, N) uint32, found bit by bit."""
    found = tl.zeros([ROWS], tl.uint32)
    bit = tl.full([ROWS], 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = found | bit
        enough = tl.sum((keys >= candidate[:, None]).to(tl.int32), axis=1) >= count
        found = tl.where(enough, candidate, found)
        bit = bit >> 1
    return found


@triton.jit
def highest(keys, count):
    """Which of ``keys`` (1, N) are the ``count`` highest; of equal ones the first."""
    least = threshold(keys, count, 1)[:, None]
    above, level = keys > least, keys == least
    missing = count - tl.sum(above.to(tl.int32), axis=1)
    return above | (level & (tl.cumsum(level.to(tl.int32), axis=1) <= missing[:, None]))
