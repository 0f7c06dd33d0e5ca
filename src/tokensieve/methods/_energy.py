"""PiToMe's decision: how redundant tokens are, and matching in the order of that (arXiv 2405.16148)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import take_rows


def energy(features: Tensor, margin: float) -> Tensor:
    """How redundant each token is: mean_j ELU(cos_ij − margin) (Tran et al. 2024, arXiv 2405.16148), (B, M)."""
    return torch.nn.functional.elu(similarity(features, features) - margin).mean(dim=2)


def ranked_matching(features: Tensor, rank: Tensor, remove: int, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite matching between the even and the odd ranks of an order (Tran et al. 2024, arXiv 2405.16148).

    Args:
        features: (B, M, D) what similarity is measured on.
        rank: (B, M) indices, the first in order first.
        remove: number of tokens that merge, at most half of ``candidates``.
        candidates: how many of the first tokens may merge or be merged into; the others stay alone.

    Returns:
        ``keep`` (B, M - remove), ``moved`` (B, remove) by falling similarity, ``onto`` (B, remove): places in ``keep``.
    """
    even, odd, others = rank[:, 0:candidates:2], rank[:, 1:candidates:2], rank[:, candidates:]
    score, partner = similarity(take_rows(features, even), take_rows(features, odd)).max(dim=2)
    order = score.sort(dim=1, descending=True, stable=True).indices
    moving, staying = order[:, :remove], order[:, remove:]
    keep = torch.cat([odd, even.gather(1, staying), others], dim=1)
    return keep, even.gather(1, moving), partner.gather(1, moving)
