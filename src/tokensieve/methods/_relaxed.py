"""DTEM's matching with a gradient (arXiv 2412.10569)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.matching import similarity

EDGES = 3  # of each token of side a, the best ones
SHARPNESS = 10.0  # of the cosines that they start from
LEAST = 1e-7  # of an edge, and of a token, is left


def relaxed_matching(metric: Tensor, remove: int, first: int, temperature: float) -> Tensor:
    """How much of each token goes to each, as ``bipartite_matching`` decides it and with a gradient; nobody leaves.

    The edges of a token of side a are its three best cosines · 10. ``remove`` times p = softmax over all edges of the
    image / temperature is taken and added up, and log(1 − Σ p) of each a, at least 1e-7, is added to its edges. Where
    more than a whole token was taken, its parts are divided by their sum. Towards temperature 0 the best edges are
    taken one after the other.

    Args:
        metric: (B, M, D) what similarity is measured on.
        remove: tokens that are to merge, 1 or more.
        first: parity (0 or 1) of the positions on side a.
        temperature: of the softmax.

    Returns:
        (B, M, M) in float32 or better; rows sum to one, those of side b are the identity's.
    """
    cosines = similarity(metric[:, first::2], metric[:, 1 - first :: 2])
    best, partner = cosines.topk(min(EDGES, cosines.shape[2]), dim=2)
    edges = best * SHARPNESS
    taken = torch.zeros_like(edges)
    for _ in range(remove):
        part = (edges / temperature).flatten(1).softmax(dim=1).view_as(edges)
        taken = taken + part
        edges = edges + (1 - part.sum(dim=2, keepdim=True)).clamp(min=LEAST).log()
    # A trace of each stays, whose logarithm, its bias in the attention, has a gradient.
    taken = taken / (taken.sum(dim=2, keepdim=True).detach() / (1 - LEAST)).clamp(min=1)
    length = metric.shape[1]
    position = torch.arange(length, device=metric.device)
    side_a, side_b = position[first::2], position[1 - first :: 2]
    given = torch.zeros(*taken.shape[:2], length, dtype=taken.dtype, device=taken.device)
    given = given.scatter_add(2, side_b[partner], taken)
    moves = torch.eye(length, dtype=taken.dtype, device=taken.device).expand(len(metric), -1, -1)
    own = moves[:, side_a] * (1 - taken.sum(dim=2, keepdim=True))
    order = torch.cat([side_a, side_b]).argsort()
    return torch.cat([own + given, moves[:, side_b]], dim=1)[:, order]
