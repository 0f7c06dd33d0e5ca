"""An assignment applied to the tokens, and the way back: the two operators that move whole tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.fused import fused
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import at_least_float32, take_rows
from tokensieve.tokens.decision import Assignment, merge_weights, slots


def regroup(group: Tensor, index: Tensor) -> Tensor:
    """Compose (B, N) groups with (B, M) slots; what is gone stays gone."""
    return torch.where(group < 0, group, index.gather(1, group.clamp(min=0)))


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """Patch numbers (B, K) as row numbers (B, P + K) of a tensor with P prefix tokens, those first."""
    front = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([front, index + prefix], dim=1) if prefix else index


class Moved(NamedTuple):
    """The tokens behind an assignment.

    Attributes:
        x: (B, P + K, C).
        group: (B, N) int64, the patch token each original stands in, negative where it is gone.
        rep: (B, K) int64, the original whose position each patch token carries.
        size: (B, K) how many originals each stands for; None where nothing has ever merged.
        slots: (B, M) int64, the new place of each old patch token, -1 for those that leave.
        normed: (B, P + K, C) what the norm makes of ``x``, or None where there is none.
        size_bias: (B, 1, 1, P + K) what ``key_bias`` makes of ``size``, where a kernel had it on its way; else None.
    """

    x: Tensor
    group: Tensor
    rep: Tensor
    size: Tensor | None
    slots: Tensor
    normed: Tensor | None = None
    size_bias: Tensor | None = None


@fused
def move_tokens(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, assignment: Assignment, norm: Norm | None = None
) -> Moved:
    """Apply an assignment: keep, merge and let go.

    Args:
        x: (B, P + M, C), P prefix tokens in front, which stay as they are.
        group: (B, N) int64, the patch token each original stands in, negative where it is gone.
        rep: (B, M) int64, the original whose position each patch token carries.
        size: (B, M) how many originals each token stands for, in float32 or better; None where all stand for one.
        assignment: over the M patch tokens.
        norm: the norm that reads the answer next, or None.
    """
    keep, prefix = assignment.keep, x.shape[1] - rep.shape[1]
    index = slots(assignment)
    kept = take_rows(x, behind_prefix(keep, prefix))
    after = None if size is None else size.gather(1, keep)
    joining = assignment.joining
    if joining is not None:
        if size is None:
            size = torch.ones(rep.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        own, mixing, after = merge_weights(assignment, size)
        moved = take_rows(x, joining[0] + prefix)
        # The prefix rides along with factor one and nothing mixed in: cheaper than taking it off and putting it back.
        own = F.pad(own, (prefix, 0), value=1.0).unsqueeze(2).to(kept.dtype)
        mixing = F.pad(mixing, (0, 0, prefix, 0)).to(kept.dtype)
        kept = torch.baddbmm(kept * own, mixing, moved)
    normed = None if norm is None else norm(kept)
    return Moved(kept, regroup(group, index), rep.gather(1, keep), after, index, normed)


def add_spread(out: Tensor, x: Tensor, assignment: Assignment) -> Tensor:
    """Give the new tokens ``out`` (B, P + K, C) their parts of the dropped ones of ``x`` (B, P + M, C)."""
    spread, dropped = assignment.spread, assignment.dropped
    if spread is None or dropped is None:
        return out
    prefix = out.shape[1] - assignment.keep.shape[1]
    spread = F.pad(at_least_float32(spread), (0, 0, prefix, 0))
    if assignment.reduce == "mean":
        share = 1 / (1 + spread.sum(dim=2, keepdim=True))
        out, spread = out * share.to(out.dtype), spread * share
    return torch.baddbmm(out, spread.to(out.dtype), take_rows(x, dropped + prefix))


@fused
def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor:
    """Tokens at the places they had: ``out[n] = x[prefix + index[n]]``, or ``other[n]`` where ``index`` is negative.

    Args:
        x: (B, P + M, C).
        index: (B, N) int64 in [-1, M).
        other: (B, N, C) what stands where ``index`` is negative; None where nobody will read those places.
        prefix: P.
        with_prefix: whether the prefix tokens of ``x`` come first in the answer.

    Returns:
        (B, N, C), or (B, P + N, C) with the prefix.
    """
    rows = index.clamp(min=0)
    out = take_rows(x, behind_prefix(rows, prefix) if with_prefix else rows + prefix)
    if other is None:
        return out
    away = index < 0
    if not (with_prefix and prefix):
        return torch.where(away.unsqueeze(2), other, out)
    away = F.pad(away, (prefix, 0), value=False)
    return torch.where(away.unsqueeze(2), F.pad(other, (0, 0, prefix, 0)), out)
