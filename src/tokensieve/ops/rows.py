"""Moving rows of a (B, M, C) tensor: gather, inverse permutations, one-hot sums, without a scatter of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or untouched where it already has float64."""
    return x if x.dtype == torch.float64 else x.float()


@operator
def head_mean(features: Tensor) -> Tensor:
    """(B, H, M, D) to the mean over heads, (B, M, D), in float32 or better."""
    return at_least_float32(features).mean(dim=1)


@operator
def unit_rows(features: Tensor) -> Tensor:
    """Rows of (B, M, D) scaled to length one, in float32 or better."""
    return torch.nn.functional.normalize(at_least_float32(features), dim=-1)


@cpu.compiled("mean_rows(Tensor features, bool unit) -> Tensor")
def _mean_rows(features: Tensor, unit: bool) -> Tensor:
    batch, _, length, dim = features.shape
    return features.new_empty(batch, length, dim, dtype=torch.float32)


@head_mean.on_cpu
def _(features: Tensor) -> Tensor | Any:
    return _mean_rows(features, False) if cpu.serves(features) else NotImplemented


@unit_rows.on_cpu
def _(features: Tensor) -> Tensor | Any:
    return _mean_rows(features.unsqueeze(1), True) if cpu.serves(features) else NotImplemented


@head_mean.on_cuda
def _(features: Tensor) -> Tensor | Any:
    if not _fits(features) or not cuda.serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import rows

    return rows.head_mean(features)


@unit_rows.on_cuda
def _(features: Tensor) -> Tensor | Any:
    if not _fits(features) or not cuda.serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import rows

    return rows.unit_rows(features)


def _fits(features: Tensor) -> bool:
    return features.dtype in cuda.FLOATS and features.shape[-1] <= cuda.MOST_CHANNELS and cuda.dense(features)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Gather rows: ``out[b, k] = x[b, index[b, k]]``.

    Args:
        x: (B, M, C) or (B, M).
        index: (B, K) int64 in [0, M).

    Returns:
        (B, K, C) or (B, K), the values of ``x`` unchanged.

    A single ``index_select`` over the flattened batch copies whole rows; ``torch.gather`` with an expanded index reads
    element by element and is about eight times slower on a CPU.
    """
    if x.dim() == 2:
        return x.gather(1, index)
    batch, length, channels = x.shape
    offsets = torch.arange(batch, device=x.device).unsqueeze(1) * length
    rows = x.reshape(batch * length, channels).index_select(0, (index + offsets).flatten())
    return rows.view(batch, index.shape[1], channels)


def one_hot(onto: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(B, R) positions to a (B, count, R) matrix of zeros and ones, so that a sum by group is a matrix product."""
    slots = torch.arange(count, device=onto.device)
    return (onto.unsqueeze(1) == slots.view(1, count, 1)).to(dtype)


def invert(permutation: Tensor) -> Tensor:
    """The inverse of a batch of permutations (B, M): ``out[b, permutation[b, i]] = i``."""
    return permutation.argsort(dim=1)


def complement(chosen: Tensor, length: int) -> Tensor:
    """The indices in [0, length) that ``chosen`` (B, K) does not name, ascending: (B, length - K)."""
    return named(chosen, length).sort(dim=1, stable=True).indices[:, : length - chosen.shape[1]]


def named(index: Tensor, length: int) -> Tensor:
    """Which of the numbers in [0, length) ``index`` (B, K) names: (B, length) int32, one or zero."""
    if torch.compiler.is_exporting():
        # Exported graphs hold no scatter, which other runtimes run slowly; comparing costs far less than the attention.
        return one_hot(index, length, torch.int32).amax(dim=2)
    return torch.zeros(index.shape[0], length, dtype=torch.int32, device=index.device).scatter(1, index, 1)


def rank_descending(score: Tensor) -> Tensor:
    """Indices (B, M) that order ``score`` (B, M) from high to low; equal scores keep the lower index first."""
    return score.sort(dim=1, descending=True, stable=True).indices


@operator
def split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest and the other indices of ``score`` (B, M), each in ascending order of position."""
    order = rank_descending(score)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


@cpu.compiled("split_top(Tensor score, int count) -> (Tensor, Tensor)")
def _split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    batch, length = score.shape
    return cpu.places(score, batch, count), cpu.places(score, batch, length - count)


@split_top.on_cpu
def _(score: Tensor, count: int) -> tuple[Tensor, Tensor] | Any:
    if not score.is_floating_point() or not cpu.serves(score):
        return NotImplemented
    return _split_top(score.float(), count)


@split_top.on_cuda
def _(score: Tensor, count: int) -> tuple[Tensor, Tensor] | Any:
    if score.dtype not in cuda.FLOATS or score.shape[1] > cuda.MOST_TOKENS or not cuda.serves(score):
        return NotImplemented
    from tokensieve.ops.cuda import select

    return select.split_top(score, count)
