"""K-medoids, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.rows import complement, one_hot, split_top


def medoids(distances: Tensor, weight: Tensor, start: Tensor, clusters: int, rounds: int) -> tuple[Tensor, ...]:
    """Tokens that stand for their neighbourhood: K-medoids from the tokens of the highest ``start``.

    In each round every token joins its nearest medoid, and the member that minimises Σ_j w_j d_ij over the members j of
    its cluster becomes the cluster's medoid. Ties go to the lower index; a medoid always belongs to its own cluster.

    Args:
        distances: (B, M, M) symmetric.
        weight: (B, M) w, not negative.
        start: (B, M) the ``clusters`` highest are the first medoids.
        clusters: number of clusters, 1 to M.
        rounds: how often medoids are moved.

    Returns:
        ``centres`` (B, clusters), ``others`` (B, M - clusters) ascending, ``onto`` (B, M - clusters): the place in
        ``centres`` of the nearest medoid of each of the others.
    """
    length = distances.shape[1]
    numbers = torch.arange(clusters, device=distances.device)
    centres = split_top(start, clusters)[0]
    for _ in range(rounds):
        joins = _nearest(distances, centres)
        together = joins.unsqueeze(2) == joins.unsqueeze(1)
        cost = (distances * together * weight.unsqueeze(1)).sum(dim=2)
        members = joins.unsqueeze(1) == numbers.unsqueeze(1)
        centres = torch.where(members, cost.unsqueeze(1), torch.inf).argmin(dim=2)
    centres = centres.sort(dim=1).values
    others = complement(centres, length)
    return centres, others, _nearest(distances, centres).gather(1, others)


def _nearest(distances: Tensor, centres: Tensor) -> Tensor:
    """(B, M): the place in ``centres`` (B, K) of every token's nearest centre; that of a centre is its own."""
    to_centres = distances.gather(1, centres.unsqueeze(2).expand(-1, -1, distances.shape[2]))
    own = one_hot(centres, distances.shape[1], torch.bool).transpose(1, 2)
    # Of equally near centres the first, but a centre is nearest to itself.
    return to_centres.masked_fill(own, -torch.inf).argmin(dim=1)
