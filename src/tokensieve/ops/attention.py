"""Rows and columns of an attention map from its queries and keys, without holding the map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator
from tokensieve.ops.rows import at_least_float32

MOST_HEAD_CHANNELS = 128  # that the CUDA kernels take


def logits(queries: Tensor, keys: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
    """Attention logits (B, H, R, L) of queries (B, H, R, D) and keys (B, H, L, D), in float32 or better.

    Args:
        queries, keys: as above.
        scale: factor of the products, or None for one.
        bias: (B, 1, 1, L) added to the logits of every key, or None.
    """
    queries = queries if scale is None else queries * scale
    product = at_least_float32(queries @ keys.transpose(-1, -2))
    return product if bias is None else product + bias


def row_blocks(length: int, block: int, stride: int = 1) -> list[slice]:
    """Slices that walk the query rows ``0, stride, 2·stride, …`` in blocks of ``block`` rows."""
    step = block * stride
    return [slice(start, min(start + step, length), stride) for start in range(0, length, step)]


@operator
def class_attention(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """The class token's row of the attention map, mean over heads: (B, L), in float32 or better.

    Args:
        queries, keys: (B, H, L, D), the class token first.
        scale: factor of the logits.
        bias: (B, 1, 1, L) added to the logits of every key, or None.
    """
    return logits(queries[:, :, 0:1], keys, scale, bias).softmax(dim=-1).mean(dim=1).squeeze(1)


@operator
def column_sums(
    queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None, voters: Tensor | None, block: int, stride: int
) -> Tensor:
    """Sums over every stride-th query row of each column of the attention map, (B, H, L), in float32 or better.

    Args:
        queries, keys, scale, bias: as for ``class_attention``.
        voters: (B, L) bool, the query rows that count, or None for all.
        block: query rows held at a time.
        stride: distance between the rows read.
    """
    total: Tensor | None = None
    for rows in row_blocks(keys.shape[2], block, stride):
        attention = logits(queries[:, :, rows], keys, scale, bias).softmax(dim=-1)
        if voters is None:
            columns = attention.sum(dim=2)
        else:
            columns = (voters[:, None, None, rows].to(attention.dtype) @ attention).squeeze(2)
        total = columns if total is None else total + columns
    assert total is not None
    return total


@cpu.compiled("class_attention(Tensor queries, Tensor keys, float scale, Tensor? bias) -> Tensor")
def _class_attention(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return keys.new_empty(keys.shape[0], keys.shape[2], dtype=torch.float32)


@cpu.compiled(
    "column_sums(Tensor queries, Tensor keys, float scale, Tensor? bias, Tensor? votes, int stride, Tensor? expand, "
    "Tensor? expand_bias, Tensor? reduce, Tensor? reduce_bias, bool logarithm) -> Tensor"
)
def compiled_column_sums(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    bias: Tensor | None,
    votes: Tensor | None,
    stride: int,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    reduce: Tensor | None,
    reduce_bias: Tensor | None,
    logarithm: bool,
) -> Tensor:
    """Of the attention map, or of the one that two convolutions of width 1 over the heads predict from its logits."""
    return keys.new_empty(keys.shape[:3], dtype=torch.float32)


@class_attention.on_cpu
def _(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor | Any:
    if not cpu.serves(queries, keys, bias):
        return NotImplemented
    return _class_attention(queries, keys, scale, None if bias is None else flat_bias(bias, keys))


@column_sums.on_cpu
def _(
    queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None, voters: Tensor | None, block: int, stride: int
) -> Tensor | Any:
    if not cpu.serves(queries, keys, bias):
        return NotImplemented
    votes = None if voters is None else voters.float().contiguous()
    flat = None if bias is None else flat_bias(bias, keys)
    return compiled_column_sums(queries, keys, scale, flat, votes, stride, None, None, None, None, False)


def flat_bias(bias: Tensor, keys: Tensor) -> Tensor:
    """A bias (B or 1, 1, 1, L) as the compiled kernels take it: (B, L) in float32, contiguous."""
    batch, _, length, _ = keys.shape
    if bias.dtype == torch.float32 and bias.shape[0] == batch and bias.is_contiguous():
        return bias.view(batch, length)
    return bias.float().expand(batch, 1, 1, length).reshape(batch, length).contiguous()


@class_attention.on_cuda
def _(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor | Any:
    if not cuda_serves(queries, keys, scale, bias):
        return NotImplemented
    from tokensieve.ops.cuda import scores

    return scores.class_attention(queries, keys, scale, shared_bias(bias, keys))


@column_sums.on_cuda
def _(
    queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None, voters: Tensor | None, block: int, stride: int
) -> Tensor | Any:
    if not cuda_serves(queries, keys, scale, bias):
        return NotImplemented
    from tokensieve.ops.cuda import columns

    votes = None if voters is None else voters.contiguous()
    return columns.column_sums(queries, keys, scale, shared_bias(bias, keys), votes, stride)


def cuda_serves(queries: Tensor, keys: Tensor, scale: object, *others: Tensor | None) -> bool:
    """Whether the CUDA kernels may read an attention map made of these."""
    same = queries.shape == keys.shape and queries.dtype == keys.dtype and keys.dtype in cuda.FLOATS
    small = keys.shape[3] <= MOST_HEAD_CHANNELS and isinstance(scale, float)
    return same and small and cuda.dense(queries, keys) and cuda.serves(queries, keys, *others)


def shared_bias(bias: Tensor | None, keys: Tensor) -> Tensor | None:
    """A bias (B or 1, 1, 1, L) as the CUDA kernels take it: (B, L), of any dtype and strides."""
    batch, _, length, _ = keys.shape
    return None if bias is None else bias.expand(batch, 1, 1, length)[:, 0, 0]
