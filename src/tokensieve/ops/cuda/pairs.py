"""BAT's disjoint pairs: rounds of mutual nearest neighbours, one program an image, or for many tokens a launch a round.

What a round finds is stored for every token: its nearest open one, NONE without any, TAKEN after it was paired. The
next round, and the pairing at the end, read from that which pairs are mutual, so that no program waits for another's
verdict.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two

NONE = tl.constexpr(-1)
TAKEN = tl.constexpr(-2)
ALONE = 256  # tokens that one program can match
TILE = 8192  # entries of the similarities at a time


@triton.jit
def _taken(nearest, tokens, there):
    """Whether tokens are taken by the end of the round that wrote ``nearest``, and which tokens they found in it."""
    found = tl.load(nearest + tokens, mask=there, other=NONE)
    back = tl.load(nearest + found, mask=there & (found >= 0), other=NONE)
    return (found == TAKEN) | ((found >= 0) & (back == tokens)), found


@triton.jit
def _round(similarities, step, nearest, best, number, start, length, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One round for the rows from ``start``: the nearest open token of each and how near it is."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    here, there = rows < length, columns < length
    before = nearest + (number - 1) * length
    known = length * tl.minimum(number, 1)  # no token has found another before the first round
    closed, _ = _taken(before, columns, columns < known)
    own, found = _taken(before, rows, rows < known)
    lost, _ = _taken(before, found, (rows < known) & (found >= 0))
    # A token that found one that is still open keeps it; a token that found none never will.
    search = here & (own == 0) & ((rows >= known) | (lost & (found >= 0)))
    open_edge = search[:, None] & (there & (closed == 0))[None, :] & (rows[:, None] != columns[None, :])
    values = tl.load(similarities + rows[:, None] * step + columns[None, :], mask=open_edge, other=float("-inf"))
    values = tl.where(values != values, float("-inf"), values)
    peak = tl.max(values, axis=1)
    first = tl.min(tl.where(values == peak[:, None], columns[None, :], BLOCK), axis=1)
    first = tl.where(peak > float("-inf"), first, NONE)
    near = tl.load(best + (number - 1) * length + rows, mask=rows < known, other=float("-inf"))
    tl.store(nearest + number * length + rows, tl.where(own, TAKEN, tl.where(search, first, found)), mask=here)
    tl.store(best + number * length + rows, tl.where(search, peak, near), mask=here)


@triton.jit
def _partners(nearest, best, tokens, length, rounds, BLOCK: tl.constexpr):
    """The partner that the rounds gave each token, NONE if none, and the similarity of the two."""
    partner = tl.full([BLOCK], NONE, tl.int32)
    value = tl.full([BLOCK], float("-inf"), tl.float32)
    for number in range(rounds):
        here = nearest + number * length
        found = tl.load(here + tokens, mask=tokens < length, other=NONE)
        back = tl.load(here + found, mask=found >= 0, other=NONE)
        mutual = (found >= 0) & (back == tokens)
        partner = tl.where(mutual, found, partner)
        near = tl.load(best + number * length + tokens, mask=mutual, other=float("-inf"))
        value = tl.where(mutual, near, value)
    return partner, value


@triton.jit
def _pair_up(
    nearest,
    best,
    score,
    score_step,
    flags,
    moved,
    onto,
    start,
    length,
    pairs,
    rounds,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pairs whose lower member lies in the rows from ``start``: what moves, its leader, and a flag for what moves."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    here, there = rows < length, columns < length
    partner, value = _partners(nearest, best, rows, length, rounds, ROWS)
    others, values = _partners(nearest, best, columns, length, rounds, BLOCK)
    leads = (others > columns) & there
    free = (others < 0) & there
    before, behind = columns[None, :] < rows[:, None], columns[None, :] > rows[:, None]
    level = (values[None, :] == value[:, None]) & before
    ahead = leads[None, :] & ((values[None, :] > value[:, None]) | level)
    rank = tl.sum(ahead.to(tl.int32), axis=1)
    # What is left pairs up by position, behind all others: the first with the second, the third with the fourth.
    waiting = tl.sum((free[None, :] & before).to(tl.int32), axis=1)
    after = tl.min(tl.where(free[None, :] & behind, columns[None, :], BLOCK), axis=1)
    left = here & (partner < 0) & (waiting % 2 == 0) & (after < length)
    lower = left | (here & (partner > rows))
    higher = tl.where(left, after, partner)
    place = tl.where(left, tl.sum(leads.to(tl.int32), axis=0) + waiting // 2, rank)
    chosen = lower & (place < pairs)
    own = tl.load(score + rows * score_step, mask=chosen, other=0.0).to(tl.float32)
    swap = own < tl.load(score + higher * score_step, mask=chosen, other=0.0).to(tl.float32)
    tl.store(moved + place, tl.where(swap, rows, higher).to(tl.int64), mask=chosen)
    tl.store(onto + place, tl.where(swap, higher, rows).to(tl.int64), mask=chosen)
    # Each token gets its flag once: from the lower member of its pair, or, as an odd one out, from itself.
    single = here & (partner < 0) & (waiting % 2 == 0) & (after >= length)
    tl.store(flags + rows, (chosen & swap).to(tl.int32), mask=lower | single)
    tl.store(flags + higher, (chosen & (swap == 0)).to(tl.int32), mask=lower)


@triton.jit
def _settle(flags, leads, onto, length, pairs, BLOCK: tl.constexpr):
    """The tokens that lead, in order, and the places of the leaders in that order."""
    tokens = tl.arange(0, BLOCK)
    stays = (tl.load(flags + tokens, mask=tokens < length, other=1) == 0) & (tokens < length)
    place = tl.cumsum(stays.to(tl.int32), axis=0) - 1
    tl.store(leads + place, tokens.to(tl.int64), mask=stays)
    leader = tl.load(onto + tokens, mask=tokens < pairs, other=0)
    tl.debug_barrier()
    tl.store(flags + tokens, place, mask=tokens < length)
    tl.debug_barrier()
    tl.store(onto + tokens, tl.load(flags + leader, mask=tokens < pairs, other=0).to(tl.int64), mask=tokens < pairs)


@triton.jit(do_not_specialize=["number", "rounds", "length", "pairs"])
def _match(
    similarities,
    score,
    nearest,
    best,
    flags,
    leads,
    moved,
    onto,
    similarities_image,
    similarities_row,
    score_image,
    score_token,
    number,
    rounds,
    length,
    pairs,
    PHASE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Phases 0 (one round), 1 (pair up) and 2 (settle) on blocks of rows, or all of them (phase 3) by one program."""
    image = tl.program_id(1).to(tl.int64)
    similarities += image * similarities_image
    score += image * score_image
    nearest += image * rounds * length
    best += image * rounds * length
    flags += image * length
    leads += image * (length - pairs)
    moved += image * pairs
    onto += image * pairs
    own = tl.program_id(0) * ROWS
    if PHASE == 0:
        _round(similarities, similarities_row, nearest, best, number, own, length, ROWS, BLOCK)
    if PHASE == 1:
        _pair_up(nearest, best, score, score_token, flags, moved, onto, own, length, pairs, rounds, ROWS, BLOCK)
    if PHASE == 2:
        _settle(flags, leads, onto, length, pairs, BLOCK)
    if PHASE == 3:
        for each in range(rounds):
            for start in range(0, length, ROWS):
                _round(similarities, similarities_row, nearest, best, each, start, length, ROWS, BLOCK)
            tl.debug_barrier()
        for start in range(0, length, ROWS):
            _pair_up(nearest, best, score, score_token, flags, moved, onto, start, length, pairs, rounds, ROWS, BLOCK)
        tl.debug_barrier()
        _settle(flags, leads, onto, length, pairs, BLOCK)


def lead_pairs(similarities: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ``tokensieve.methods._attentive.lead_pairs``; ``similarities`` in float32, dense in the last dimension."""
    batch, length, _ = similarities.shape
    device = similarities.device
    nearest = torch.empty(batch, rounds, length, dtype=torch.int32, device=device)
    best = torch.empty(batch, rounds, length, dtype=torch.float32, device=device)
    flags = torch.empty(batch, length, dtype=torch.int32, device=device)
    leads = torch.empty(batch, length - pairs, dtype=torch.int64, device=device)
    moved = torch.empty(batch, pairs, dtype=torch.int64, device=device)
    onto = torch.empty_like(moved)
    block = power_of_two(length, 16)
    given = (similarities, score, nearest, best, flags, leads, moved, onto, *similarities.stride()[:2], *score.stride())
    sizes = (rounds, length, pairs)
    # Stages would read ahead of a barrier.
    shape = {"ROWS": max(1, min(64, TILE // block)), "BLOCK": block, "num_warps": 8, "num_stages": 1}
    if length <= ALONE:
        launch(_match, (1, batch), *given, 0, *sizes, PHASE=3, **shape)
        return leads, moved, onto
    grid = (blocks(length, shape["ROWS"]), batch)
    for number in range(rounds):
        launch(_match, grid, *given, number, *sizes, PHASE=0, **shape)
    launch(_match, grid, *given, 0, *sizes, PHASE=1, **shape)
    launch(_match, (1, batch), *given, 0, *sizes, PHASE=2, **shape)
    return leads, moved, onto
