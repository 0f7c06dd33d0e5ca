"""EViT's split: the highest scores, and one token that all others join (arXiv 2202.07800)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu
from tokensieve.ops._operator import operator
from tokensieve.ops.rows import rank_descending


@operator
def split_fused(score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``score`` (B, M) the ``count`` - 1 highest by position, then the next one, which all others join.

    Returns:
        ``keep`` (B, count), ``moved`` (B, M - count) by falling score, and ``onto`` of that shape, all ``count`` - 1.
    """
    order = rank_descending(score)
    keep = torch.cat([order[:, : count - 1].sort(dim=1).values, order[:, count - 1 : count]], dim=1)
    moved = order[:, count:]
    return keep, moved, torch.full_like(moved, count - 1)


@cpu.compiled("split_fused(Tensor score, int count) -> (Tensor, Tensor, Tensor)")
def _split_fused(score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = score.shape
    rest = length - count
    return cpu.places(score, batch, count), cpu.places(score, batch, rest), cpu.places(score, batch, rest)


@split_fused.on_cpu
def _(score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    if not score.is_floating_point() or not cpu.serves(score):
        return NotImplemented
    return _split_fused(score.float(), count)
