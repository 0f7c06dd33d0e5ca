"""How a value that tokens carry follows a decision: written once, for whatever is carried.

Scores of the attention, sizes, masks, and what methods lay beside their tokens all go this way; the features themselves
are moved by one kernel (``move.move_tokens``), which means the same.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tokensieve.ops.rows import one_hot, take_rows
from tokensieve.tokens.decision import Assignment, Decision, KeepMask
from tokensieve.tokens.soft import leaders, mixed, shared_out

Joins = Literal["lead", "sum", "mean", "max"]


def follow(values: Tensor, decision: Decision, joins: Joins, way_back: Tensor | None = None) -> Tensor:
    """Values of the tokens before a decision as values of the tokens behind it.

    Args:
        values: (B, M) or (B, M, D), of any dtype.
        decision: over the M patch tokens.
        joins: what a token made of several has: the value of the one that leads it ("lead"), their "sum", their "mean"
            whatever their sizes, or their "max", channel by channel. In a soft assignment the token with the largest
            weight leads, a sum is divided as the columns of the matrix, a mean is weighted by its rows, and a maximum
            is over all tokens with a weight above 0.
        way_back: (B, M, S) the matrix by which a sum is divided in its stead, see ``soft.shared_out``.

    Returns:
        (B, K) or (B, K, D).
    """
    if isinstance(decision, KeepMask):
        return values
    if joins == "lead":
        lead = decision.keep if isinstance(decision, Assignment) else leaders(decision.matrix)
        return take_rows(values, lead)
    flat = values if values.dim() == 3 else values.unsqueeze(2)
    if isinstance(decision, Assignment):
        flat = _joined(flat, decision, joins)
    elif joins == "max":
        flat = _highest(flat, decision.weights(flat.shape[1]) > 0)
    elif joins == "mean":
        flat = mixed(decision.matrix, flat)
    else:
        flat = shared_out(decision.matrix, flat, way_back)
    return flat if values.dim() == 3 else flat.squeeze(2)


def _joined(values: Tensor, assignment: Assignment, joins: Joins) -> Tensor:
    """Values (B, M, D) of the tokens before a hard assignment, joined over the members of each new one."""
    joined = take_rows(values, assignment.keep)
    if assignment.alive is not None:
        joined = joined.masked_fill(~assignment.alive.unsqueeze(2), 0)
    if assignment.joining is None:
        return joined
    moved, onto = assignment.joining
    count = assignment.keep.shape[1]
    if joins == "max":
        return torch.maximum(joined, _highest(take_rows(values, moved), one_hot(onto, count, torch.bool)))
    members = one_hot(onto, count, values.dtype)
    with torch.autocast(values.device.type, enabled=False):  # a score in half precision would have ties
        joined = torch.baddbmm(joined, members, take_rows(values, moved))
    return joined / (1 + members.sum(dim=2, keepdim=True)) if joins == "mean" else joined


def _highest(values: Tensor, members: Tensor) -> Tensor:
    """The largest of (B, R, D) values among the ``members`` (B, K, R) of each group, the lowest number where it has
    none: (B, K, D). Channel by channel, since no (B, K, R, D) should be written out."""
    least = lowest(values.dtype)
    channels = [torch.where(members, channel.unsqueeze(1), least).amax(dim=2) for channel in values.unbind(dim=2)]
    return torch.stack(channels, dim=2)


def lowest(dtype: torch.dtype) -> float | int | bool:
    """What no value of this type lies below."""
    if dtype == torch.bool:
        return False
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
