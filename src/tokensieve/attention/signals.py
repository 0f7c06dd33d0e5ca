"""Signals: what is read of a block's attention, in memory that grows with the tokens and never with their square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops import attention as operators
from tokensieve.ops.attention import row_blocks


@dataclass
class Attended:
    """What one block's attention was computed from.

    Attributes:
        queries, keys, values: (B, H, L, D), L = prefix + patch tokens. Parallel attentions lie side by side in H.
        scale: factor of the logits, 1 / sqrt(D) unless the model says otherwise.
        bias: (B, 1, 1, L) added to the logits of every key, or None.
        class_row: (B, L) what ``cls_row`` gives, where the kernel of the attention had it on its way; or None.
        outputs: (B, H, L, D) what every head gave, A·V, or None where no method asked for it.
        floor: (B, H, 1, 1) the entries of ``attention_rows`` below it are 0, see ``sparse.with_floor``; or None. What
            kernels sum up on their way, ``cls_row`` and ``received``, is of the whole map.
        own: how many of the channels of queries and keys are theirs; those behind carry relative positions. None: all.
        between: (B or 1, H, L, L) what was added to the logits of each pair of tokens, beside ``bias``; or None.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    bias: Tensor | None = None
    class_row: Tensor | None = None
    outputs: Tensor | None = None
    floor: Tensor | None = None
    between: Tensor | None = None
    own: int | None = None


def first_keys(attended: Attended, length: int) -> Attended:
    """What an attention over the first ``length`` tokens alone would be computed from."""
    bias = None if attended.bias is None else attended.bias[..., :length].contiguous()
    queries, keys, values = (part[:, :, :length] for part in (attended.queries, attended.keys, attended.values))
    outputs = None if attended.outputs is None else attended.outputs[:, :, :length]
    between = None if attended.between is None else attended.between[:, :, :length, :length]
    scale, floor, own = attended.scale, attended.floor, attended.own
    return Attended(queries, keys, values, scale, bias, outputs=outputs, floor=floor, between=between, own=own)


def logits(attended: Attended, rows: slice = slice(None), scaled: bool = True) -> Tensor:
    """Attention logits of some query rows, (B, H, R, L), in float32 or better, biased as the kernel saw them.

    ``scaled=False`` leaves the factor 1 / sqrt(D) out.
    """
    scale = attended.scale if scaled else None
    found = operators.logits(attended.queries[:, :, rows], attended.keys, scale, attended.bias)
    return found if attended.between is None else found + attended.between[:, :, rows]


def attention_rows(attended: Attended, rows: slice) -> Tensor:
    """Softmax attention of some query rows, (B, H, R, L), in float32 or better."""
    attention = logits(attended, rows).softmax(dim=-1)
    return attention if attended.floor is None else attention.masked_fill(attention < attended.floor, 0)


def cls_row(attended: Attended) -> Tensor:
    """The class token's row of the attention map, mean over heads: (B, L), in float32 or better."""
    if attended.class_row is not None:  # the attention's own kernel had it on its way
        return attended.class_row
    if attended.between is not None:
        return attention_rows(attended, slice(0, 1)).mean(dim=1).squeeze(1)
    return operators.class_attention(attended.queries, attended.keys, attended.scale, attended.bias)


def column_sums(attended: Attended, voters: Tensor | None, block: int, stride: int) -> Tensor:
    """Sums over every stride-th query row of each column of the attention map, (B, H, L); see ``received``."""
    if attended.between is not None:
        total = attended.keys.new_zeros((), dtype=torch.float32)
        for rows in row_blocks(attended.keys.shape[2], block, stride):
            attention = attention_rows(attended, rows)
            votes = attention if voters is None else attention * voters[:, None, rows, None]
            total = total + votes.sum(dim=2)
        return total
    return operators.column_sums(attended.queries, attended.keys, attended.scale, attended.bias, voters, block, stride)


def voters_of(alive: Tensor | None, prefix: int) -> Tensor | None:
    """(B, P + M) bool, the query rows that count: the prefix and the slots that hold a token; None where all do."""
    return None if alive is None else F.pad(alive, (prefix, 0), value=True)


def received(attended: Attended, voters: Tensor | None = None, block: int = 64, stride: int = 1) -> Tensor:
    """Attention received: the mean of each key's column of the attention map, (B, H, L).

    Streamed over blocks of query rows: exact with ``stride=1``, in O(L·block) memory; a larger stride reads every
    stride-th row and is an estimate.

    Args:
        attended: what the attention was computed from.
        voters: (B, L) bool, the query rows that count, or None for all (padding must not vote).
        block: query rows held at a time.
        stride: distance between the rows read.
    """
    length = attended.keys.shape[2]
    count: Tensor | int = len(range(0, length, stride))
    if voters is not None:
        count = voters[:, ::stride].sum(dim=1).view(-1, 1, 1)
    return column_sums(attended, voters, block, stride) / count


def spread_shares(attended: Attended, shares: Tensor, block: int = 64) -> Tensor:
    """Label shares behind an attention and its residual, (A·r + r) / 2 with A the mean of the heads' maps.

    Streamed over blocks of query rows: O(H·block·L) memory (TL-Align, arXiv 2210.06455).

    Args:
        attended: what the attention was computed from.
        shares: (B, L, K) in float32 or better.
        block: query rows held at a time.
    """
    with torch.autocast(shares.device.type, enabled=False):
        taken = [
            attention_rows(attended, rows).mean(dim=1).to(shares.dtype) @ shares
            for rows in row_blocks(shares.shape[1], block)
        ]
    return (torch.cat(taken, dim=1) + shares) / 2
