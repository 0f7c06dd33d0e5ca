"""An assignment applied to the tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.ops import moving
from tokensieve.ops.larger import larger_of
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import at_least_float32, take_rows
from tokensieve.tokens.decision import Assignment


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


def move_tokens(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, assignment: Assignment, norm: Norm | None = None
) -> Moved:
    """Apply an assignment: keep, merge and drop.

    Args:
        x: (B, P + M, C), P prefix tokens in front, which stay as they are.
        group: (B, N) int64, the patch token each original stands in, negative where it is gone.
        rep: (B, M) int64, the original whose position each patch token carries.
        size: (B, M) how many originals each token stands for, in float32 or better; None where all stand for one.
        assignment: over the M patch tokens.
        norm: the norm that reads the answer next, or None.

    Raises:
        TokensieveError: a weight or a spread where members do not mix, ``reduce="larger"``.
    """
    if assignment.reduce == "larger":
        larger = _larger(x, assignment, x.shape[1] - rep.shape[1])
        # Positions, sizes and places are those of a mean, whose features are not read.
        mean = move_tokens(x, group, rep, size, replace(assignment, reduce="mean"))
        return mean._replace(x=larger, normed=None if norm is None else norm(larger))
    moved = moving.move_tokens(
        x,
        group,
        rep,
        size,
        assignment.keep,
        assignment.moved,
        assignment.onto,
        assignment.dropped,
        assignment.weight,
        assignment.reduce == "mean",
        assignment.alive,
        assignment.padding_onto,
        norm,
    )
    return Moved(*moved)


def _larger(x: Tensor, assignment: Assignment, prefix: int) -> Tensor:
    """The tokens (B, P + K, C) that ``x`` (B, P + M, C) becomes under ``reduce="larger"``."""
    if assignment.weight is not None or assignment.spread is not None:
        raise TokensieveError(
            "an assignment with reduce='larger' takes the value of one token whatever it weighs: leave weight and "
            "spread out, or let reduce be 'mean' or 'sum'"
        )
    out, joins = take_rows(x, moving.behind_prefix(assignment.keep, prefix)), assignment.joining
    if joins is None:
        return out
    moved, onto = joins
    larger = larger_of(out[:, prefix:], take_rows(x, moved + prefix), onto)
    return torch.cat([out[:, :prefix], larger], dim=1) if prefix else larger


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
