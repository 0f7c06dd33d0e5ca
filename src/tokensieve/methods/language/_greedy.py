"""Greedy choices of a subset, one token after another, for a batch of images at once.

Of equal gains the one of lower index wins, where equal means up to rounding: what covers two tokens that are like each
other often gains exactly as much by one as by the other, and neither the batch nor the device decides then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu
from tokensieve.ops._operator import operator

ROUNDING = 64  # in units of the precision of the dtype: what differs by less is equal
BLOCKS = 8  # of rows, in which cosines are computed


def cosines_between(unit: Tensor) -> Tensor:
    """(B, N, N) the cosines of rows (B, N, C) of length one, without a gradient; symmetric to the last bit.

    Blocks below the diagonal are those above it, mirrored: little more than half of the products.
    """
    unit = unit.detach()
    if torch.compiler.is_exporting():  # other runtimes write into parts of a tensor slowly
        return unit @ unit.transpose(1, 2)
    length = unit.shape[1]
    found = unit.new_empty(len(unit), length, length)
    size = max(1, -(-length // BLOCKS))
    for start in range(0, length, size):
        end = min(start + size, length)
        block = unit[:, start:end] @ unit[:, start:].transpose(1, 2)
        own = block[:, :, : end - start]
        found[:, start:end, start:end] = own.triu() + own.triu(diagonal=1).transpose(1, 2)
        found[:, start:end, end:] = block[:, :, end - start :]
        found[:, end:, start:end] = block[:, :, end - start :].transpose(1, 2)
    return found


@operator
def determinantal(unit: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy maximum a posteriori of the determinantal process L = diag(w) · S · diag(w), S the cosines.

    Each step takes the token that adds most to log det(L_chosen), by incremental Cholesky: log of w² times the square
    of the part of it that the chosen ones do not span. A step reads one row of S: N × N is never held. The kernel looks
    only at tokens that may be best.

    Args:
        unit: (B, N, C) features of length one.
        weight: (B, N), 0 or more; a common factor changes nothing.
        count: K, at most N.

    Returns:
        (B, K) int64, in the order of the choice. Tokens that the chosen ones span add nothing and come last.
    """
    images = torch.arange(len(unit), device=unit.device)
    left = (unit != 0).any(dim=2).to(unit.dtype)  # the diagonal of S, without rounding
    factors = unit.new_zeros(*unit.shape[:2], count)
    taken = torch.zeros_like(left, dtype=torch.bool)
    tiny = ROUNDING * torch.finfo(unit.dtype).eps
    chosen: list[Tensor] = []
    for step in range(count):
        place = _best(weight.square() * left, taken)
        chosen.append(place)
        taken[images, place] = True
        pivot = left[images, place].unsqueeze(1)
        row = (unit @ unit[images, place].unsqueeze(2)).squeeze(2)
        seen = (factors[:, :, :step] @ factors[images, place, :step].unsqueeze(2)).squeeze(2)
        column = torch.where(pivot > tiny, (row - seen) * pivot.clamp(min=tiny).rsqrt(), 0.0)
        factors[:, :, step] = column
        left = left - column.square()
        left = torch.where(left > tiny, left, 0.0)
    return torch.stack(chosen, dim=1)


@operator
def covering(value: Tensor, count: int) -> Tensor:
    """Greedy maximum of the facility location f(S) = Σ_r max_{i ∈ S} value_ri.

    Args:
        value: (B, R, N): how well each of N tokens covers each of R rows.
        count: K, at most N.

    Returns:
        (B, K) int64, in the order of the choice.
    """
    images = torch.arange(len(value), device=value.device)
    best = value.amin(dim=2)  # what every choice covers is no reason to choose
    taken = torch.zeros_like(value[:, 0], dtype=torch.bool)
    chosen: list[Tensor] = []
    for _ in range(count):
        place = _best((value - best.unsqueeze(2)).clamp(min=0).sum(dim=1), taken)
        chosen.append(place)
        taken[images, place] = True
        best = best.maximum(value[images, :, place])
    return torch.stack(chosen, dim=1)


def _best(gain: Tensor, taken: Tensor) -> Tensor:
    """(B) int64: the place of the highest of (B, N) gains, 0 or more, among those that are not ``taken``."""
    gain = gain.masked_fill(taken, -torch.inf)
    enough = gain.amax(dim=1, keepdim=True) * (1 - ROUNDING * torch.finfo(gain.dtype).eps)
    return (gain >= enough).int().argmax(dim=1)


@cpu.compiled("greedy_determinant(Tensor unit, Tensor weight, int count) -> Tensor")
def _greedy_determinant(unit: Tensor, weight: Tensor, count: int) -> Tensor:
    return cpu.places(unit, len(unit), count)


@cpu.compiled("greedy_cover(Tensor value, int count) -> Tensor")
def _greedy_cover(value: Tensor, count: int) -> Tensor:
    return cpu.places(value, len(value), count)


@determinantal.on_cpu
def _(unit: Tensor, weight: Tensor, count: int) -> Tensor | Any:
    both = unit.detach(), weight.detach()
    if any(part.dtype != torch.float32 for part in both) or count > unit.shape[1] or not cpu.serves(*both):
        return NotImplemented
    return _greedy_determinant(both[0].contiguous(), both[1].contiguous(), count)


@covering.on_cpu
def _(value: Tensor, count: int) -> Tensor | Any:
    value = value.detach()
    if value.dtype != torch.float32 or count > value.shape[2] or not cpu.serves(value):
        return NotImplemented
    return _greedy_cover(value.contiguous(), count)
