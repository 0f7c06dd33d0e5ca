"""Tokens kept, merged and dropped, and put back where they were: the two operators that move whole tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import at_least_float32, invert, one_hot, take_rows

STAYS = -2  # as the new place of a token that does not move after all
# What ``move_tokens`` answers with.
Moves = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


def regroup(group: Tensor, index: Tensor) -> Tensor:
    """Compose (B, N) groups with (B, M) slots; what is gone stays gone."""
    return torch.where(group < 0, group, index.gather(1, group.clamp(min=0)))


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """Patch numbers (B, K) as row numbers (B, P + K) of a tensor with P prefix tokens, those first."""
    front = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([front, index + prefix], dim=1) if prefix else index


def joining(
    keep: Tensor, moved: Tensor | None, onto: Tensor | None, alive: Tensor | None, padding_onto: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """(B, R) old tokens and the new ones they join, -1 for those that join none; those in padding included.

    Arguments as of ``move_tokens``; None where nothing joins another.
    """
    parts = [] if moved is None or onto is None else [(moved, onto)]
    if padding_onto is not None and alive is not None:
        parts.append((keep, padding_onto.masked_fill(alive, -1)))
    if not parts:
        return None
    moved, onto = (torch.cat(part, dim=1) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return (moved, onto) if moved.shape[1] else None


def slots(
    keep: Tensor,
    moved: Tensor | None,
    onto: Tensor | None,
    dropped: Tensor | None,
    alive: Tensor | None,
    padding_onto: Tensor | None,
) -> Tensor:
    """(B, M): the new token each old one goes to, -1 for those that leave. Arguments as of ``move_tokens``."""
    batch, count = keep.shape
    places = torch.arange(count, device=keep.device).expand(batch, -1)
    if alive is not None:
        elsewhere = torch.full_like(places, -1) if padding_onto is None else padding_onto
        places = torch.where(alive, places, elsewhere)
    sources, targets = [keep], [places]
    if moved is not None and onto is not None:
        sources.append(moved)
        targets.append(onto)
    if dropped is not None:
        sources.append(dropped)
        targets.append(torch.full_like(dropped, -1))
    return torch.cat(targets, dim=1).gather(1, invert(torch.cat(sources, dim=1)))


def merge_weights(
    keep: Tensor, joins: tuple[Tensor, Tensor], weight: Tensor | None, mean: bool, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How tokens mix that join others, in float32 or better.

    Args:
        keep, weight, mean: as of ``move_tokens``.
        joins: see ``joining``.
        sizes: (B, M) how many originals each token stands for.

    Returns:
        ``own`` (B, K): the factor of each leading token; exactly 1 where nothing joins it.
        ``mixing`` (B, K, R): the factor of each moved token in each new one.
        ``size`` (B, K): how many originals each new token stands for.
    """
    source, onto = joins
    by_size = weight is None
    weight = at_least_float32(sizes if weight is None else weight)
    member = one_hot(onto, keep.shape[1], weight.dtype)
    led, moved = weight.gather(1, keep), weight.gather(1, source)
    mixing = member * moved.unsqueeze(1)
    if by_size and mean:
        # The weights are the sizes, so their sum is the new size; it is zero for padding alone.
        size = led + mixing.sum(2)
        total = size.clamp(min=torch.finfo(size.dtype).tiny)
        return led / total, mixing / total.unsqueeze(2), size.to(sizes.dtype)
    gained = member.to(sizes.dtype) @ sizes.gather(1, source).unsqueeze(2)
    size = sizes.gather(1, keep) + gained.squeeze(2)
    if not mean:
        return torch.where(member.sum(2) > 0, led, torch.ones_like(led)), mixing, size
    total = led + mixing.sum(2)
    # A weight can underflow to zero; its token then stays as it is instead of becoming 0/0.
    usable = total > 0
    safe = torch.where(usable, total, torch.ones_like(total))
    own = torch.where(usable, led / safe, torch.ones_like(led))
    return own, mixing / safe.unsqueeze(2), size


@operator
def move_tokens(
    x: Tensor,
    group: Tensor,
    rep: Tensor,
    size: Tensor | None,
    keep: Tensor,
    moved: Tensor | None,
    onto: Tensor | None,
    dropped: Tensor | None,
    weight: Tensor | None,
    mean: bool,
    alive: Tensor | None,
    padding_onto: Tensor | None,
    norm: Norm | None,
) -> Moves:
    """Keep, merge and drop tokens.

    Args:
        x: (B, P + M, C), P prefix tokens in front, which do not change.
        group: (B, N) int64, the patch token each original stands in, negative where it is gone.
        rep: (B, M) int64, the original whose position each patch token carries.
        size: (B, M) how many originals each token stands for, in float32 or better; None where all stand for one.
        keep: (B, K) int64, the old token that leads each new one.
        moved, onto: (B, R) int64, old tokens that merge and the new ones they join, -1 for those that leave; or None.
        dropped: (B, D) int64, old tokens that leave, or None.
        weight: (B, M) of each token in a merge; None for its size.
        mean: whether merges divide by the summed weight.
        alive: (B, K) bool, which new slots hold a token, or None for all.
        padding_onto: (B, K) int64, for the other slots the new token that their old one joins, or None.
        norm: what reads the answer next, or None.

    Returns:
        ``x`` (B, P + K, C), ``group`` (B, N), ``rep`` (B, K), ``size`` (B, K) or None where nothing has ever merged,
        the slots (B, M) int64 of the old tokens, -1 for those that leave, what the norm makes of ``x`` or None, and
        what ``key_bias`` makes of ``size`` (B, 1, 1, P + K), where a kernel had it on its way, or None.
    """
    prefix = x.shape[1] - rep.shape[1]
    index = slots(keep, moved, onto, dropped, alive, padding_onto)
    kept = take_rows(x, behind_prefix(keep, prefix))
    after = None if size is None else size.gather(1, keep)
    joins = joining(keep, moved, onto, alive, padding_onto)
    if joins is not None:
        if size is None:
            size = torch.ones(rep.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        own, mixing, after = merge_weights(keep, joins, weight, mean, size)
        merging = take_rows(x, joins[0] + prefix)
        # The prefix rides along with factor one and nothing mixed in: cheaper than taking it off and putting it back.
        own = F.pad(own, (prefix, 0), value=1.0).unsqueeze(2).to(kept.dtype)
        mixing = F.pad(mixing, (0, 0, prefix, 0)).to(kept.dtype)
        kept = torch.baddbmm(kept * own, mixing, merging)
    normed = None if norm is None else norm(kept)
    return kept, regroup(group, index), rep.gather(1, keep), after, index, normed, None


@cpu.compiled(
    "move_tokens(Tensor x, Tensor group, Tensor rep, Tensor? size, Tensor keep, Tensor? moved, Tensor? onto, "
    "Tensor? weight, bool mean) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _move_tokens(
    x: Tensor,
    group: Tensor,
    rep: Tensor,
    size: Tensor | None,
    keep: Tensor,
    moved: Tensor | None,
    onto: Tensor | None,
    weight: Tensor | None,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels = x.shape
    present, left = rep.shape[1], keep.shape[1]
    return (
        x.new_empty(batch, length - present + left, channels),
        cpu.places(x, batch, group.shape[1]),
        cpu.places(x, batch, left),
        x.new_empty(batch, left, dtype=torch.float32),
        cpu.places(x, batch, present),
        x.new_empty(batch, 1, 1, length - present + left, dtype=torch.float32),
    )


@move_tokens.on_cpu
def _(
    x: Tensor,
    group: Tensor,
    rep: Tensor,
    size: Tensor | None,
    keep: Tensor,
    moved: Tensor | None,
    onto: Tensor | None,
    dropped: Tensor | None,
    weight: Tensor | None,
    mean: bool,
    alive: Tensor | None,
    padding_onto: Tensor | None,
    norm: Norm | None,
) -> Moves | Any:
    if not x.is_contiguous() or not cpu.serves(x, size, weight, group, rep):
        return NotImplemented
    counted = size is not None or (moved is not None and moved.shape[1] > 0)
    if alive is not None:
        counted = counted or padding_onto is not None
        moved, onto = _with_padding(keep, moved, onto, alive, padding_onto)
    if moved is None or moved.shape[1] == 0:
        moved = onto = weight = None
    out, groups, reps, sizes, index, bias = _move_tokens(x, group, rep, size, keep, moved, onto, weight, mean)
    normed = None if norm is None else norm(out)
    return out, groups, reps, sizes if counted else None, index, normed, bias if counted else None


def _with_padding(
    keep: Tensor, moved: Tensor | None, onto: Tensor | None, alive: Tensor, padding_onto: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens (B, R) that move and the new ones they join, with the slots of an image that padding fills among them."""
    elsewhere = torch.full_like(keep, -1) if padding_onto is None else padding_onto
    elsewhere = elsewhere.masked_fill(alive, STAYS)
    if moved is None or onto is None:
        return keep, elsewhere
    return torch.cat([moved, keep], dim=1), torch.cat([onto, elsewhere], dim=1)


@move_tokens.on_cuda
def _(
    x: Tensor,
    group: Tensor,
    rep: Tensor,
    size: Tensor | None,
    keep: Tensor,
    moved: Tensor | None,
    onto: Tensor | None,
    dropped: Tensor | None,
    weight: Tensor | None,
    mean: bool,
    alive: Tensor | None,
    padding_onto: Tensor | None,
    norm: Norm | None,
) -> Moves | Any:
    none = keep[:, :0]
    parts = tuple(none if part is None else part for part in (keep, moved, onto, dropped))
    named = keep.shape[1] + parts[1].shape[1] + parts[3].shape[1]
    if alive is not None or named != rep.shape[1] or x.dtype not in cuda.FLOATS or not cuda.dense(x):
        return NotImplemented
    if not cuda.serves(x, group, rep, size, weight, *parts):
        return NotImplemented
    from tokensieve.ops.cuda import moving

    parts = tuple(part if cuda.dense(part) else part.contiguous() for part in parts)
    fits = norm is None or (
        x.shape[2] <= moving.MOST_CHANNELS
        and not torch.is_autocast_enabled("cuda")
        and cuda.serves(norm.weight, norm.bias)
        and norm.weight.dtype in cuda.FLOATS
    )
    weight = weight if parts[1].shape[1] else None
    out, *others, normed = moving.move_tokens(x, group, rep, size, parts, weight, mean, norm if fits else None)
    if norm is not None and not fits:
        normed = norm(out)
    return out, *others, normed, None


@operator
def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor:
    """Tokens at the places they had: ``out[n] = x[prefix + index[n]]``, or ``other[n]`` where ``index`` is negative.

    Args:
        x: (B, P + M, C).
        index: (B, N) int64 in [-1, M).
        other: (B, N, C) what stands where ``index`` is negative; None where those places will not be read.
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


@cpu.compiled("put_back(Tensor x, Tensor index, Tensor? other, int prefix, bool with_prefix) -> Tensor")
def _put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor:
    batch, _, channels = x.shape
    return x.new_empty(batch, index.shape[1] + (prefix if with_prefix else 0), channels)


@put_back.on_cpu
def _(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor | Any:
    if not x.is_contiguous() or not cpu.serves(x, other, index):
        return NotImplemented
    if other is not None and (other.dtype != x.dtype or other.stride(1) != other.shape[2]):
        return NotImplemented
    return _put_back(x, index, other, prefix, with_prefix)


@put_back.on_cuda
def _(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor | Any:
    if x.dtype not in cuda.FLOATS or not cuda.dense(x, other) or not cuda.serves(x, index, other):
        return NotImplemented
    if other is not None and other.dtype != x.dtype:
        return NotImplemented
    from tokensieve.ops.cuda import moving

    return moving.put_back(x, index, other, prefix, with_prefix)
