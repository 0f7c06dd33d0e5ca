"""The way back: tokens that sat out return to their places, and at the end every original is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.moving import behind_prefix, put_back, regroup
from tokensieve.ops.rows import invert, one_hot, take_rows
from tokensieve.tokens.node import changed
from tokensieve.tokens.rider import riding_on
from tokensieve.tokens.soft import given_back
from tokensieve.tokens.table import Extra, Table

if TYPE_CHECKING:
    from tokensieve.tokens.state import Fill, Parked, Tokens


def returning(tokens: Tokens, block: int, after_attention: bool = False) -> Tokens:
    """Bring back what is due after the attention of ``block``, or before ``block`` begins: every parked group, and the
    tokens that a soft assignment was made of."""
    parked, outer = tokens.back.parked, tokens.back.outer
    now = (block, after_attention)
    due = [place for place, entry in enumerate(parked) if (entry.block, entry.after_attention) <= now]
    for place in reversed(due):
        tokens = _unpark(tokens, place)
    mixed = outer is not None and outer.block is not None and (outer.block, False) <= now
    if mixed:
        tokens = _unmixed(_present(tokens, tokens.back.fill), tokens.back.fill)
    if not (due or mixed) or not tokens.riders:
        return tokens
    return tokens.changed(riders=riding_on(tokens.riders, lambda rider: rider.returned(block, after_attention)))


def _unpark(tokens: Tokens, place: int = -1) -> Tokens:
    """The state with the tokens of one parked group among the others again."""
    entry = tokens.back.parked[place]
    before = entry.before
    parked = tuple(other for other in tokens.back.parked if other is not entry)
    if entry.start is not None:
        return _part(tokens, entry, parked)
    if tokens.version == entry.version and tokens.count + entry.dropped.shape[1] >= before.count:
        # Nothing moved meanwhile and nothing merged as they left: all return to the places they had, and so does the
        # whole bookkeeping.
        return tokens.changed(
            x=put_back(tokens.x, entry.index, before.patches, tokens.prefix, with_prefix=True),
            table=_at_old_places(tokens.table, entry),
            back=changed(tokens.back, group=before.back.group, parked=parked),
            version=tokens.version + 1,
        )
    return _in_order(tokens, entry, parked)


def _at_old_places(table: Table, entry: Parked) -> Table:
    """The table of before, with the extras of today where a token was present and not one of several in one."""
    before = entry.before.table
    if not table.extras:
        return before if before.size_bias is None else before.changed(size_bias=None)
    extras: dict[str, Extra] = {}
    absent = entry.index < 0 if entry.start is None else ~_alone(entry, table.rep.shape[1])
    for name, extra in table.extras.items():
        then = before.extras.get(name)
        now = take_rows(extra.value, behind_prefix(entry.index.clamp(min=0), extra.prefix))
        away = F.pad(absent, (extra.prefix, 0), value=False)
        old = extra.unknown(now.shape[1]) if then is None else then.value
        value = torch.where(away.unsqueeze(2) if now.dim() == 3 else away, old, now)
        extras[name] = Extra(value, extra.joins, extra.prefix)
    return before.changed(extras=extras, size_bias=None)


def _in_order(tokens: Tokens, entry: Parked, parked: tuple[Parked, ...]) -> Tokens:
    """Tokens were merged or dropped meanwhile: those that return join at the end, then all are ordered by position."""
    before = entry.before
    present = tokens.count
    away = entry.index < 0
    stays = ~away.gather(1, entry.dropped)
    dropped = entry.dropped.gather(1, entry.dropped.masked_fill(stays, before.count).argsort(dim=1, stable=True))
    comes = away.gather(1, dropped)  # those first, by position, so that counting gives each its place
    rep = torch.cat([tokens.table.rep, before.table.rep.gather(1, dropped)], dim=1)
    position = rep
    if tokens.hidden:  # these stay last
        behind = torch.arange(rep.shape[1], device=rep.device).sub(present - tokens.hidden).ge(0)
        behind = behind & (torch.arange(rep.shape[1], device=rep.device) < present)
        position = rep + behind * before.back.group.shape[1]
    order = position.sort(dim=1, stable=True).indices
    own_place = torch.where(away, present - 1 + away.cumsum(dim=1), -1)
    came_back = regroup(before.back.group, own_place)
    group = torch.where(tokens.back.group >= 0, tokens.back.group, came_back)
    patches = torch.cat([tokens.patches, before.rows(dropped)], dim=1)
    return tokens.with_patches(
        take_rows(patches, order),
        table=_beside_each_other(tokens.table, before.table, dropped, comes, rep).take(order),
        back=changed(tokens.back, group=regroup(group, invert(order)), parked=parked),
        version=tokens.version + 1,
    )


def _beside_each_other(now: Table, then: Table, dropped: Tensor, comes: Tensor, rep: Tensor) -> Table:
    """The rows of the tokens present, and behind them those that the ``dropped`` (B, D) had; of these, slots that do
    not ``comes`` (B, D) hold no token. Columns that only one side has are filled with what is neutral in them."""
    present = now.rep.shape[1]

    def beside(here: Tensor | None, there: Tensor | None, neutral: Tensor) -> Tensor | None:
        if here is None and there is None:
            return None
        here = neutral[:, :1].expand(-1, present) if here is None else here
        there = neutral[:, :1].expand(-1, dropped.shape[1]) if there is None else there.gather(1, dropped)
        return torch.cat([here, there & comes if there.dtype == torch.bool else there], dim=1)

    ones = torch.ones(rep.shape, device=rep.device)
    extras: dict[str, Extra] = {}
    for name, extra in now.extras.items():
        earlier = then.extras.get(name)
        value = extra.unknown(dropped.shape[1]) if earlier is None else take_rows(earlier.patches, dropped)
        extras[name] = extra.of(torch.cat([extra.patches, value], dim=1))
    return Table(
        rep,
        beside(now.size, then.size, ones),
        beside(now.alive, then.alive, ones.bool()),
        beside(now.mask, then.mask, ones),
        extras,
    )


def _alone(entry: Parked, count: int) -> Tensor:
    """(B, M) bool: which tokens of before are by themselves in one of the ``count`` present."""
    members = one_hot(entry.index, count, torch.int32)
    return members.sum(dim=2).gather(1, entry.index) == 1


def _part(tokens: Tokens, entry: Parked, parked: tuple[Parked, ...]) -> Tokens:
    """Merged tokens part: each has its own value of before, plus what the token it had joined has changed by."""
    before, start, prefix = entry.before, entry.start, tokens.prefix
    assert start is not None and tokens.version == entry.version  # ``schedule`` refuses a method that would move them
    present = put_back(tokens.x, entry.index, None, prefix, with_prefix=True)
    gain = put_back(tokens.x - start, entry.index, None, prefix, with_prefix=True)
    alone = F.pad(_alone(entry, tokens.count), (prefix, 0), value=True).unsqueeze(2)
    return tokens.changed(
        x=torch.where(alone, present, before.x + gain),
        table=_at_old_places(tokens.table, entry),
        back=changed(tokens.back, group=before.back.group, parked=parked),
        version=tokens.version + 1,
    )


def patches_at_originals(tokens: Tokens) -> Tensor:
    """(B, N, C): every original patch at this level, the current value where present and the canvas where gone."""
    if tokens.version == 0:
        return tokens.patches
    return put_back(tokens.x, tokens.back.group, tokens.back.canvas, tokens.prefix, with_prefix=False)


def visible(tokens: Tokens) -> Tokens:
    """The state without the tokens that only stand in for removed ones: what removal would have left."""
    if not tokens.hidden:
        return tokens
    left = tokens.count - tokens.hidden
    group = tokens.back.group
    return tokens.changed(
        x=tokens.x[:, : tokens.prefix + left],
        table=tokens.table.first(left),
        back=changed(tokens.back, group=torch.where(group < left, group, -1)),
        hidden=0,
    )


def faded(tokens: Tokens) -> Tokens:
    """The state with masked tokens replaced by the mean of the others, as ``fill="mean"`` does with removed ones."""
    assert tokens.table.mask is not None
    mask = tokens.table.mask.unsqueeze(2).to(tokens.x.dtype)
    weights = tokens.sizes.unsqueeze(2).to(tokens.x.dtype) * mask
    total = weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (tokens.patches * weights).sum(dim=1, keepdim=True) / total
    return tokens.with_patches(mask * tokens.patches + (1 - mask) * mean)


def _fill_mean(tokens: Tokens, patches: Tensor) -> Tensor:
    sizes = tokens.sizes.unsqueeze(2).to(tokens.x.dtype)
    mean = (tokens.patches * sizes).sum(dim=1, keepdim=True) / sizes.sum(dim=1, keepdim=True)
    return torch.where((tokens.back.group < 0).unsqueeze(2), mean, patches)


def _present(tokens: Tokens, fill: Fill) -> Tokens:
    """The state with all tokens that sit out among the others, and without those that stand in for removed ones."""
    while tokens.back.parked:
        tokens = _unpark(tokens)
    if tokens.table.mask is not None and fill == "mean":
        return faded(tokens)
    return visible(tokens) if fill == "last" else tokens


def _filled(tokens: Tokens, fill: Fill) -> Tensor:
    """(B, N, C): every original patch at this level, with what is gone filled in."""
    patches = patches_at_originals(tokens)
    return _fill_mean(tokens, patches) if tokens.back.canvas is not None and fill == "mean" else patches


def _unmixed(tokens: Tokens, fill: Fill) -> Tokens:
    """The state before a soft assignment, of what has become of its tokens."""
    outer = tokens.back.outer
    assert outer is not None
    before = outer.before
    whole = given_back(outer.restore, _filled(tokens, fill), before.patches)
    return before.changed(
        x=torch.cat([tokens.x[:, : tokens.prefix], whole], dim=1) if tokens.prefix else whole,
        events=tokens.events,
        stages=tokens.stages,
        riders=tokens.riders,
    )


def restore(tokens: Tokens, fill: Fill = "last") -> Tensor:
    """Every original token: (B, P + N, C); see ``Tokens.restore``."""
    tokens = _present(tokens, fill)
    back = tokens.back
    if back.outer is not None:
        return restore(_unmixed(tokens, fill), fill)
    if back.canvas is not None and fill == "mean":
        return tokens.with_patches(_filled(tokens, fill)).x
    if tokens.version == 0:
        return tokens.x
    return put_back(tokens.x, back.group, back.canvas, tokens.prefix, with_prefix=True)
