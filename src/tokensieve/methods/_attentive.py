"""BAT's decision on one set of tokens: pairs among the attentive, clusters among the others (arXiv 2211.11315)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.density import density_peaks
from tokensieve.ops.fused import fused
from tokensieve.ops.matching import match_pairs
from tokensieve.ops.rows import split_top
from tokensieve.tokens.move import put_back


@fused
def pair_and_cluster(
    x: Tensor, prefix: int, score: Tensor, attentive: int, pairs: int, clusters: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge pairs of the tokens that score high, and cluster the others.

    Args:
        x: (B, P + M, C), P prefix tokens in front that take no part.
        prefix: P.
        score: (B, M).
        attentive: how many of the highest scores are attentive, 1 to M - 1.
        pairs: how many pairs of those merge, see ``match_pairs``.
        clusters: how many clusters the others become, 1 or more, see ``density_peaks``.
        rounds: of ``match_pairs``.

    Returns:
        ``keep`` (B, attentive - pairs + clusters), ``moved`` (B, R) and ``onto`` (B, R), as in ``Assignment``.
    """
    high, low = split_top(score, attentive)
    first, second = (put_back(x, index, None, prefix, with_prefix=False) for index in (high, low))
    leads, joining, partners = match_pairs(first, score.gather(1, high), pairs, rounds)
    centres, others, joins = density_peaks(second, clusters)
    return (
        torch.cat([high.gather(1, leads), low.gather(1, centres)], dim=1),
        torch.cat([high.gather(1, joining), low.gather(1, others)], dim=1),
        torch.cat([partners, joins + leads.shape[1]], dim=1),
    )
