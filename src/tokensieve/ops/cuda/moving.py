"""Moving tokens: an assignment applied in two launches, and the way back. Nothing is added atomically.

The first launch copies the leaders and writes down where every token goes. The second looks that up for the originals
and sums the tokens that others join, each by one program and in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two
from tokensieve.ops.norm import Norm

SCAN = 128  # index entries that a program handles or looks at together
MOST_CHANNELS = 1024  # channels that a program copies together
TILE = 8192  # entries of the rows that a program sums together


@triton.jit
def _store_normed(row, values, lanes, channels, weight, bias, eps):
    """Write to ``row`` the LayerNorm of one row of ``values``, which is 0 behind the last of its channels."""
    inside = lanes < channels
    values = values.to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / channels, 0.0)
    centred *= tl.rsqrt(tl.sum(centred * centred, axis=0) / channels + eps)
    centred *= tl.load(weight + lanes, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        centred += tl.load(bias + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(row + lanes, centred.to(row.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["prefix", "present", "kept", "merging", "dropping"])
def _lead(
    x, rep, size, keep, moved, onto, dropped, out, reps, sizes, slots, normed, norm_weight, norm_bias,
    x_image, x_token, rep_image, rep_token, size_image, size_token, keep_image, moved_image, onto_image, dropped_image,
    prefix, present, kept, merging, dropping, channels, eps, CHANNELS: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """Copy one row and note its leader's place; the programs behind the rows note where the other tokens go.

    Where the row is read by a norm next, its channels are one block and ``normed`` gets what that makes of it.
    """
    number, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    width = prefix + kept
    slots += image * present
    if number < width:
        place = number - prefix
        old = tl.load(keep + image * keep_image + place, mask=place >= 0, other=-1)
        known = (old >= 0) & (old < present)
        row = tl.where(place >= 0, prefix + old, number)
        source = x + image * x_image + row * x_token
        readable = tl.where(known | (place < 0), channels, 0)
        for start in range(0, channels, CHANNELS):
            lanes = start + tl.arange(0, CHANNELS)
            values = tl.load(source + lanes, mask=lanes < readable, other=0.0)
            tl.store(out + (image * width + number) * channels + lanes, values, mask=lanes < channels)
            if normed is not None:
                written = normed + (image * width + number) * channels
                _store_normed(written, values, lanes, channels, norm_weight, norm_bias, eps)
        tl.store(slots + old, place.to(tl.int64), mask=known)
        position = tl.load(rep + image * rep_image + old * rep_token, mask=known, other=0)
        tl.store(reps + image * kept + place, position, mask=place >= 0)
        if sizes is not None:
            stands_for = 1.0
            if size is not None:
                stands_for = tl.load(size + image * size_image + old * size_token, mask=known, other=0.0).to(tl.float32)
            tl.store(sizes + image * kept + place, stands_for, mask=place >= 0)
    else:
        numbers = (number - width) * SCAN + tl.arange(0, SCAN)
        joins = tl.load(moved + image * moved_image + numbers, mask=numbers < merging, other=-1)
        new = tl.load(onto + image * onto_image + numbers, mask=numbers < merging, other=-1)
        tl.store(slots + joins, new, mask=(joins >= 0) & (joins < present))
        leaves = tl.load(dropped + image * dropped_image + numbers, mask=numbers < dropping, other=-1)
        tl.store(slots + leaves, tl.full([SCAN], -1, tl.int64), mask=(leaves >= 0) & (leaves < present))


@triton.jit
def _regroup(group, group_image, group_token, slots, groups, image, places, originals, present):
    """Write for the originals ``places`` of an image the new place of the token that each stands in."""
    old = tl.load(group + image * group_image + places * group_token, mask=places < originals, other=-1)
    new = tl.load(slots + image * present + old, mask=(old >= 0) & (old < present), other=-1)
    tl.store(groups + image * originals + places, tl.where(old < 0, old, new), mask=places < originals)


@triton.jit
def _joined_before(onto, number, place, SCAN: tl.constexpr):
    """How many of the first ``number`` moved tokens join the new token ``place``."""
    earlier = 0
    for start in range(0, number, SCAN):
        numbers = start + tl.arange(0, SCAN)
        same = tl.load(onto + numbers, mask=numbers < number, other=-1) == place
        earlier += tl.sum(same.to(tl.int32), axis=0)
    return earlier


@triton.jit(do_not_specialize=["prefix", "originals", "present", "kept", "merging"])
def _follow(
    x, group, size, weight, keep, moved, onto, slots, out, groups, sizes, normed, norm_weight, norm_bias,
    x_image, x_token, group_image, group_token, size_image, size_token, weight_image, weight_token,
    keep_image, moved_image, onto_image, prefix, originals, present, kept, merging, channels, eps,
    MEAN: tl.constexpr, CHANNELS: tl.constexpr, SCAN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What becomes of the originals; behind those, each moved token that is the first to join another makes the sum."""
    image = tl.program_id(2).to(tl.int64)
    looking = tl.cdiv(originals, SCAN)
    if tl.program_id(0) < looking:
        if tl.program_id(1) == 0:
            places = tl.program_id(0) * SCAN + tl.arange(0, SCAN)
            _regroup(group, group_image, group_token, slots, groups, image, places, originals, present)
    else:
        number = tl.program_id(0) - looking
        moved += image * moved_image
        onto += image * onto_image
        place = tl.load(onto + number)
        earlier = _joined_before(onto, number, place, SCAN)
        lead = tl.load(keep + image * keep_image + place, mask=(place >= 0) & (place < kept), other=-1)
        if (earlier == 0) & (lead >= 0) & (lead < present):
            lanes = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
            inside = lanes < channels
            x += image * x_image
            # Where nothing says otherwise, every token stands for one original and weighs as much.
            stands_for = 1.0
            if size is not None:
                stands_for = tl.load(size + image * size_image + lead * size_token).to(tl.float32)
            total = stands_for
            if weight is not None:
                total = tl.load(weight + image * weight_image + lead * weight_token).to(tl.float32)
            leading = tl.load(x + (prefix + lead) * x_token + lanes, mask=inside, other=0.0).to(tl.float32)
            sums = leading * total
            for start in range(number, merging, TILE):
                few = start + tl.arange(0, TILE)
                mine = tl.load(onto + few, mask=few < merging, other=-1) == place
                source = tl.load(moved + few, mask=mine, other=-1)
                mine = mine & (source >= 0) & (source < present)
                share = mine.to(tl.float32)
                if size is not None:
                    share = tl.load(size + image * size_image + source * size_token, mask=mine, other=0.0)
                    share = share.to(tl.float32)
                stands_for += tl.sum(share, axis=0)
                if weight is not None:
                    share = tl.load(weight + image * weight_image + source * weight_token, mask=mine, other=0.0)
                    share = share.to(tl.float32)
                total += tl.sum(share, axis=0)
                rows = x + (prefix + source)[:, None] * x_token + lanes[None, :]
                values = tl.load(rows, mask=mine[:, None] & inside[None, :], other=0.0).to(tl.float32)
                sums += tl.sum(values * share[:, None], axis=0)
            if MEAN:
                # A weight can underflow to zero; its token then stays as it is instead of becoming 0/0.
                sums = tl.where(total > 0.0, sums / total, leading)
            row = image * (prefix + kept) + prefix + place
            rounded = sums.to(out.dtype.element_ty)
            tl.store(out + row * channels + lanes, rounded, mask=inside)
            if normed is not None:
                _store_normed(normed + row * channels, rounded, lanes, channels, norm_weight, norm_bias, eps)
            if sizes is not None:  # there always are here, but the compiler cannot know
                tl.store(sizes + image * kept + place, stands_for, mask=tl.program_id(1) == 0)


def move_tokens(
    x: Tensor,
    group: Tensor,
    rep: Tensor,
    size: Tensor | None,
    parts: tuple[Tensor, ...],
    weight: Tensor | None,
    mean: bool,
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """See ``tokensieve.ops.moving.move_tokens``, of whose answer this is all but the last.

    ``parts`` are keep, moved, onto and dropped, empty where the assignment has none, dense in the last dimension.
    Indices of tokens that are not there are left out. A ``norm`` is for at most ``MOST_CHANNELS`` channels.
    """
    keep, moved, onto, dropped = parts
    batch, _, channels = x.shape
    present, originals, kept, merging = rep.shape[1], group.shape[1], keep.shape[1], moved.shape[1]
    prefix = x.shape[1] - present
    device = x.device
    out = torch.empty(batch, prefix + kept, channels, dtype=x.dtype, device=device)
    groups = torch.empty(batch, originals, dtype=torch.int64, device=device)
    reps = torch.empty(batch, kept, dtype=torch.int64, device=device)
    slots = torch.empty(batch, present, dtype=torch.int64, device=device)
    normed = None if norm is None else torch.empty_like(out)
    norms = (None, None) if norm is None else (norm.weight, norm.bias)
    eps = 0.0 if norm is None else norm.eps
    counted = size is not None or merging > 0
    sizes = torch.empty(batch, kept, dtype=torch.float32, device=device) if counted else None
    size_steps = (0, 0) if size is None else size.stride()
    indices = (keep.stride(0), moved.stride(0), onto.stride(0))
    noting = blocks(max(merging, dropped.shape[1]), SCAN)
    launch(
        _lead,
        (prefix + kept + noting, batch),
        *(x, rep, size, keep, moved, onto, dropped, out, reps, sizes, slots, normed, *norms),
        *(*x.stride()[:2], *rep.stride(), *size_steps, *indices, dropped.stride(0)),
        *(prefix, present, kept, merging, dropped.shape[1], channels, eps),
        CHANNELS=min(MOST_CHANNELS, power_of_two(channels, 16)),
        SCAN=SCAN,
        num_warps=1,  # a program that mostly waits should be small
    )
    # Many tokens may all join one: then it takes fewer channels and more of them at a time. A norm wants them all.
    widest = MOST_CHANNELS if norm is not None else 256 if merging <= 256 else 64
    width = min(widest, power_of_two(channels, 16))
    launch(
        _follow,
        (blocks(originals, SCAN) + merging, blocks(channels, width) if merging else 1, batch),
        *(x, group, size, weight, keep, moved, onto, slots, out, groups, sizes, normed, *norms),
        *(*x.stride()[:2], *group.stride(), *size_steps, *((0, 0) if weight is None else weight.stride()), *indices),
        *(prefix, originals, present, kept, merging, channels, eps),
        MEAN=mean,
        CHANNELS=width,
        SCAN=SCAN,
        TILE=min(128, TILE // width),
    )
    return out, groups, reps, sizes, slots, normed


@triton.jit(do_not_specialize=["prefix", "front", "present", "originals"])
def _put_back(
    x,
    index,
    other,
    out,
    x_image,
    x_token,
    index_image,
    index_token,
    other_image,
    other_token,
    prefix,
    front,
    present,
    originals,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    places = rows - front
    original = (places >= 0) & (places < originals)
    found = tl.load(index + image * index_image + places * index_token, mask=original, other=0)
    old = tl.where(places < 0, rows, prefix + tl.maximum(found, 0))
    inside = (rows < front + originals)[:, None] & (lanes < channels)[None, :]
    stays = (places < 0) | (found < present)
    away = original & (found < 0)
    if other is not None:
        stays = stays & (away == 0)
    source = x + image * x_image + old[:, None] * x_token + lanes[None, :]
    values = tl.load(source, mask=inside & stays[:, None], other=0.0)
    if other is not None:
        elsewhere = other + image * other_image + places[:, None] * other_token + lanes[None, :]
        values = tl.where(away[:, None], tl.load(elsewhere, mask=inside & away[:, None], other=0.0), values)
    tl.store(out + (image * (front + originals) + rows[:, None]) * channels + lanes[None, :], values, mask=inside)


def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor:
    """See ``tokensieve.ops.moving.put_back``."""
    batch, length, channels = x.shape
    originals, front = index.shape[1], prefix if with_prefix else 0
    out = torch.empty(batch, front + originals, channels, dtype=x.dtype, device=x.device)
    rows, width = 16, min(256, power_of_two(channels, 16))
    launch(
        _put_back,
        (blocks(front + originals, rows), batch, blocks(channels, width)),
        *(x, index, other, out),
        *(*x.stride()[:2], *index.stride(), *((0, 0) if other is None else other.stride()[:2])),
        *(prefix, front, length - prefix, originals, channels),
        ROWS=rows,
        CHANNELS=width,
    )
    return out
