"""Attention maps of which only the largest entries stay. The one place that holds a whole map: N² per head."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.attention.signals import Attended, attention_rows


def with_floor(attended: Attended, share: float) -> Attended:
    """The same attention with a ``floor``: below the smallest entry that stays of each head's map nothing stays.

    Args:
        attended: what the attention is computed from.
        share: of the L² entries of a map that stay; the k-th smallest is the floor, k = int(L² · (1 − share)).
    """
    attention = attention_rows(attended, slice(None)).flatten(2)
    rank = int(attention.shape[2] * (1 - share))
    if rank < 1:
        return attended
    floor = attention.sort(dim=2).values[..., rank - 1]
    return replace(attended, floor=floor[..., None, None])


def sparse_attention(attended: Attended, dropout_p: float = 0.0) -> Tensor:
    """(B, H, L, D) of an attention with a floor; rows are not divided by what is left of them."""
    with torch.autocast(attended.values.device.type, enabled=False):
        attention = F.dropout(attention_rows(attended, slice(None)), dropout_p)
        return (attention @ attended.values.to(attention.dtype)).to(attended.values.dtype)
