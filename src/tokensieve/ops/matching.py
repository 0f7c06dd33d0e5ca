"""Matching tokens: ToMe's two halves, and greedy disjoint pairs without a loop over pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator
from tokensieve.ops.rows import head_mean, unit_rows


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(B, M, D) and (B, L, D) to the cosine similarities (B, M, L), in float32 or better, outside autocast."""
    with torch.autocast(a.device.type, enabled=False):
        left = unit_rows(a)
        right = left if b is a else unit_rows(b)
        return left @ right.transpose(1, 2)


@operator
def bipartite_matching(metric: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching (Bolya et al. 2022, arXiv 2210.09461, appendix D).

    Tokens alternate between two sides, a and b. Every a takes its most similar b; the ``remove`` best of these edges
    merge their a into its b.

    Args:
        metric: (B, M, D) what similarity is measured on.
        remove: number of tokens that merge, at most the size of side a.
        first: parity (0 or 1) of the positions on side a.

    Returns:
        ``keep`` (B, M - remove): the a's that stay, ascending, then all b's; ``moved`` (B, remove) by falling
        similarity; ``onto`` (B, remove): the place in ``keep`` of the b that each moved a joins.
    """
    batch, length = metric.shape[:2]
    positions = torch.arange(length, device=metric.device)
    score, partner = similarity(metric[:, first::2], metric[:, 1 - first :: 2]).max(dim=-1)
    order = score.sort(dim=1, descending=True, stable=True).indices
    moving, staying = order[:, :remove], order[:, remove:].sort(dim=1).values
    keep = torch.cat([positions[first::2][staying], positions[1 - first :: 2].expand(batch, -1)], dim=1)
    return keep, positions[first::2][moving], partner.gather(1, moving) + staying.shape[1]


@operator
def match_halves(features: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """``bipartite_matching`` on the mean over heads of (B, H, M, D)."""
    return bipartite_matching(head_mean(features), remove, first)


@cpu.compiled("match_halves(Tensor metric, int remove, int first) -> (Tensor, Tensor, Tensor)")
def _match_halves(metric: Tensor, remove: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, length, _ = metric.shape
    left = cpu.places(metric, batch, length - remove)
    return left, cpu.places(metric, batch, remove), cpu.places(metric, batch, remove)


@bipartite_matching.on_cpu
def _(metric: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    return _match_halves(metric.unsqueeze(1), remove, first) if cpu.serves(metric) else NotImplemented


@match_halves.on_cpu
def _(features: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    return _match_halves(features, remove, first) if cpu.serves(features) else NotImplemented


@bipartite_matching.on_cuda
def _(metric: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    fits = 2 <= metric.shape[1] <= 2 * cuda.MOST_TOKENS
    if metric.dtype not in cuda.FLOATS or not fits or not cuda.dense(metric) or not cuda.serves(metric):
        return NotImplemented
    from tokensieve.ops.cuda import matching

    return matching.bipartite_matching(metric, remove, first)


def greedy_pairs(similarities: Tensor, count: int, rounds: int = 6) -> tuple[Tensor, Tensor]:
    """The ``count`` most similar disjoint pairs, highest first, as greedy matching finds them one by one.

    An edge that is the best one at both of its ends is taken by greedy matching whatever else happens, so each round
    takes all mutual nearest neighbours at once. A sample that has fewer than ``count`` pairs after the last round is
    completed with free tokens that are neighbours in order of position, which on an image tend to be alike.

    Args:
        similarities: (B, K, K) symmetric; the diagonal is ignored. Equal values prefer the lower index.
        count: pairs to return, at most K // 2.
        rounds: rounds of mutual nearest neighbours.

    Returns:
        Two index tensors (B, count): the lower and the higher member of each pair, pairs by falling similarity.
    """
    batch, length, _ = similarities.shape
    positions = torch.arange(length, device=similarities.device)
    lowest = torch.finfo(similarities.dtype).min
    # Closing edges by adding minus infinity is four times faster on a CPU than filling under a mask.
    diagonal = torch.eye(length, dtype=torch.bool, device=similarities.device)
    closed = similarities.new_zeros(length, length).masked_fill(diagonal, -torch.inf)
    open_edges = similarities.detach() + closed
    partner = positions.expand(batch, -1)
    value = torch.full((batch, length), lowest, dtype=similarities.dtype, device=similarities.device)
    free = torch.ones(batch, length, dtype=torch.bool, device=similarities.device)
    for _ in range(rounds):
        best, nearest = open_edges.max(dim=2)
        mutual = (nearest.gather(1, nearest) == positions) & free & (best > -torch.inf)
        partner = torch.where(mutual, nearest, partner)
        value = torch.where(mutual, best, value)
        free = free & ~mutual
        # Rows of taken tokens may keep their edges: what they find is ignored, and no row finds them.
        open_edges = open_edges + torch.zeros_like(best).masked_fill(~free, -torch.inf).unsqueeze(1)
    # Pair up what is left by position: the 1st with the 2nd free token and so on. They sort behind all others.
    queue = (~free).int().sort(dim=1, stable=True).indices
    half = length // 2 * 2
    left, right = queue[:, 0:half:2], queue[:, 1:half:2]
    both = free.gather(1, left) & free.gather(1, right)
    leads = (partner > positions) & ~free
    first = torch.cat([positions.expand(batch, -1), left], dim=1)
    second = torch.cat([partner, right], dim=1)
    last = torch.full(both.shape, -torch.inf, dtype=value.dtype, device=value.device).masked_fill(both, lowest)
    rank = torch.cat([value.masked_fill(~leads, -torch.inf), last], dim=1)
    order = rank.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return first.gather(1, order), second.gather(1, order)
