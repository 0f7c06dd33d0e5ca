"""MCTF's matching in both directions (arXiv 2403.10030)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.rows import invert, named


def two_way_matching(
    weights: Tensor, forth: int, back: int, by_edge: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bipartite matching in both directions on the same weights (Lee et al. 2024, arXiv 2403.10030, section 3.2).

    Every a takes its best b and the ``forth`` best of these edges move their a; then every b takes its best a among
    those that stayed, and the ``back`` best of these edges move their b, with all that had joined it.

    Args:
        weights: (B, I, J) of each pair of an a and a b. Equal ones prefer the lower index.
        forth: number of a's that move, less than I where any b moves.
        back: number of b's that move, at most J.
        by_edge: whether the b's that stay are ordered by their edges, the best first, and not by their places.

    Returns:
        ``stay_a`` (B, I - forth) ascending and ``stay_b`` (B, J - back), ``moved`` (B, forth + back): places among the
        a's, then among the b's, ``onto`` of the same shape: the place of the token each joins among all that stay, a's
        first.
    """
    best, partner = weights.max(dim=2)
    order = best.sort(dim=1, descending=True, stable=True).indices
    from_a, stay_a = order[:, :forth], order[:, forth:].sort(dim=1).values
    leaves = named(from_a, best.shape[1]) > 0
    best, to_a = weights.masked_fill(leaves.unsqueeze(2), -torch.inf).max(dim=1)
    order = best.sort(dim=1, descending=True, stable=True).indices
    from_b, stay_b = order[:, :back], order[:, back:]
    stay_b = stay_b if by_edge else stay_b.sort(dim=1).values
    place_a = (~leaves).cumsum(dim=1) - 1
    joins = place_a.gather(1, to_a.gather(1, from_b))
    goes = named(from_b, to_a.shape[1]) > 0
    rank = invert(order) - back if by_edge else (~goes).cumsum(dim=1) - 1
    place_b = torch.where(goes, place_a.gather(1, to_a), stay_a.shape[1] + rank)
    onto = torch.cat([place_b.gather(1, partner.gather(1, from_a)), joins], dim=1)
    return stay_a, stay_b, torch.cat([from_a, from_b], dim=1), onto
