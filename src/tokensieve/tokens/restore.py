"""The way back: tokens that sat out return to their places, and at the end every original is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.rows import invert, one_hot, take_rows
from tokensieve.tokens.decision import given_back
from tokensieve.tokens.move import put_back, regroup

if TYPE_CHECKING:
    from tokensieve.tokens.state import Fill, Parked, Tokens


def returning(tokens: Tokens, block: int, after_attention: bool = False) -> Tokens:
    """Bring back every parked group that is due after the attention of ``block``, or before ``block`` begins."""
    for place in reversed(range(len(tokens.parked))):
        entry = tokens.parked[place]
        if (entry.block, entry.after_attention) <= (block, after_attention):
            tokens = _unpark(tokens, place)
    if tokens.shares is None:
        return tokens
    return tokens.changed(shares=returning(tokens.shares, block, after_attention))


def _unpark(tokens: Tokens, place: int = -1) -> Tokens:
    entry = tokens.parked[place]
    before = entry.before
    parked = tuple(other for other in tokens.parked if other is not entry)
    if entry.start is not None:
        return _part(tokens, entry, parked)
    if tokens.version == entry.version and tokens.count + entry.dropped.shape[1] >= before.count:
        # Nothing moved meanwhile and nothing merged as they left: everyone returns to the place it had, and so does the
        # whole bookkeeping.
        return tokens.changed(
            x=put_back(tokens.x, entry.index, before.patches, tokens.prefix, with_prefix=True),
            group=before.group,
            rep=before.rep,
            size=before.size,
            alive=before.alive,
            mask=before.mask,
            parked=parked,
            version=tokens.version + 1,
        )
    # Tokens were merged or dropped meanwhile: who comes back joins at the end, then all are put in order of position.
    present, joining = tokens.count, entry.dropped.shape[1]
    away = entry.index < 0
    stays = ~away.gather(1, entry.dropped)
    dropped = entry.dropped.gather(1, entry.dropped.masked_fill(stays, before.count).argsort(dim=1, stable=True))
    comes = away.gather(1, dropped)  # those first, by position, so that counting gives each its place
    rep = torch.cat([tokens.rep, before.rep.gather(1, dropped)], dim=1)
    position = rep
    if tokens.hidden:  # these stay last
        behind = torch.arange(rep.shape[1], device=rep.device).sub(present - tokens.hidden).ge(0)
        behind = behind & (torch.arange(rep.shape[1], device=rep.device) < present)
        position = rep + behind * before.group.shape[1]
    order = position.sort(dim=1, stable=True).indices
    own_place = torch.where(away, present - 1 + away.cumsum(dim=1), -1)
    came_back = regroup(before.group, own_place)
    group = torch.where(tokens.group >= 0, tokens.group, came_back)
    patches = torch.cat([tokens.patches, before.rows(dropped)], dim=1)

    def ordered(now: Tensor | None, then: Tensor | None, neutral: Tensor) -> Tensor | None:
        if now is None and then is None:
            return None
        now = neutral[:, :1].expand(-1, present) if now is None else now
        then = neutral[:, :1].expand(-1, joining) if then is None else then.gather(1, dropped)
        if then.dtype == torch.bool:
            then = then & comes
        return torch.cat([now, then], dim=1).gather(1, order)

    ones = torch.ones(rep.shape, device=rep.device)
    return tokens.with_patches(
        take_rows(patches, order),
        group=regroup(group, invert(order)),
        rep=rep.gather(1, order),
        size=ordered(tokens.size, before.size, ones),
        alive=ordered(tokens.alive, before.alive, ones.bool()),
        mask=ordered(tokens.mask, before.mask, ones),
        parked=parked,
        version=tokens.version + 1,
    )


def _part(tokens: Tokens, entry: Parked, parked: tuple[Parked, ...]) -> Tokens:
    """Merged tokens part: each has its own value of before, plus what the token it had joined has changed by."""
    before, start, prefix = entry.before, entry.start, tokens.prefix
    assert start is not None and tokens.version == entry.version  # ``placement.schedule`` refuses whoever would move
    present = put_back(tokens.x, entry.index, None, prefix, with_prefix=True)
    changed = put_back(tokens.x - start, entry.index, None, prefix, with_prefix=True)
    members = one_hot(entry.index, tokens.count, torch.int32)
    alone = members.sum(dim=2).gather(1, entry.index) == 1
    alone = F.pad(alone, (prefix, 0), value=True).unsqueeze(2)
    return tokens.changed(
        x=torch.where(alone, present, before.x + changed),
        group=before.group,
        rep=before.rep,
        size=before.size,
        alive=before.alive,
        mask=before.mask,
        parked=parked,
        version=tokens.version + 1,
    )


def patches_at_originals(tokens: Tokens) -> Tensor:
    """(B, N, C): every original patch at this level, the current value where present and the canvas where gone."""
    if tokens.version == 0:
        return tokens.patches
    return put_back(tokens.x, tokens.group, tokens.canvas, tokens.prefix, with_prefix=False)


def visible(tokens: Tokens) -> Tokens:
    """The state without the tokens that only stand in for removed ones: what removal would have left."""
    if not tokens.hidden:
        return tokens
    left = tokens.count - tokens.hidden
    return tokens.changed(
        x=tokens.x[:, : tokens.prefix + left],
        group=torch.where(tokens.group < left, tokens.group, -1),
        rep=tokens.rep[:, :left],
        size=None if tokens.size is None else tokens.size[:, :left],
        alive=None if tokens.alive is None else tokens.alive[:, :left],
        mask=None if tokens.mask is None else tokens.mask[:, :left],
        hidden=0,
    )


def faded(tokens: Tokens) -> Tokens:
    """The state with masked tokens replaced by the mean of the others, as ``fill="mean"`` does with removed ones."""
    assert tokens.mask is not None
    mask = tokens.mask.unsqueeze(2).to(tokens.x.dtype)
    weights = tokens.sizes.unsqueeze(2).to(tokens.x.dtype) * mask
    total = weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (tokens.patches * weights).sum(dim=1, keepdim=True) / total
    return tokens.with_patches(mask * tokens.patches + (1 - mask) * mean)


def _fill_mean(tokens: Tokens, patches: Tensor) -> Tensor:
    sizes = tokens.sizes.unsqueeze(2).to(tokens.x.dtype)
    mean = (tokens.patches * sizes).sum(dim=1, keepdim=True) / sizes.sum(dim=1, keepdim=True)
    return torch.where((tokens.group < 0).unsqueeze(2), mean, patches)


def restore(tokens: Tokens, fill: Fill = "last") -> Tensor:
    """Every original token: (B, P + N, C), in the dtype of ``tokens.x``.

    A token that stands for several originals is given to each of them; parked ones come back; those that are gone get
    their last value (``fill="last"``) or the size-weighted mean of the patch tokens present (``fill="mean"``, what a
    head that averages over patches needs in order to average over the kept ones only).
    """
    while tokens.parked:
        tokens = _unpark(tokens)
    if tokens.mask is not None and fill == "mean":
        tokens = faded(tokens)
    elif fill == "last":
        tokens = visible(tokens)
    filled = tokens.canvas is not None and fill == "mean"
    if tokens.outer is None and not filled:
        if tokens.version == 0:
            return tokens.x
        return put_back(tokens.x, tokens.group, tokens.canvas, tokens.prefix, with_prefix=True)
    patches = patches_at_originals(tokens)
    if filled:
        patches = _fill_mean(tokens, patches)
    if tokens.outer is None:
        return tokens.with_patches(patches).x
    before = tokens.outer.before
    whole = given_back(tokens.outer.restore, patches, before.patches)
    prefix = tokens.x[:, : tokens.prefix]
    return restore(before.changed(x=torch.cat([prefix, whole], dim=1) if tokens.prefix else whole), fill)
