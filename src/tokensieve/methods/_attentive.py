"""BAT's decision on one set of tokens: pairs among the attentive, clusters among the others (arXiv 2211.11315)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import greedy_pairs, similarity
from tokensieve.ops.moving import put_back
from tokensieve.ops.rows import complement, named, split_top, unit_rows


@operator
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


@operator
def match_pairs(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most similar disjoint pairs among K tokens; the higher score of a pair leads it, the lower index a tie.

    Args:
        features: (B, K, C) whose cosines are compared.
        score: (B, K).
        pairs, rounds: see ``greedy_pairs``.

    Returns:
        ``leads`` (B, K - pairs) ascending, ``moved`` (B, pairs), ``onto`` (B, pairs): places in ``leads``.
    """
    return lead_pairs(similarity(features, features), score, pairs, rounds)


def lead_pairs(similarities: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """``match_pairs`` from the similarities (B, K, K)."""
    first, second = greedy_pairs(similarities, pairs, rounds)
    swap = score.gather(1, first) < score.gather(1, second)
    leader, moved = torch.where(swap, second, first), torch.where(swap, first, second)
    length = similarities.shape[1]
    leads = complement(moved, length)
    # The place of a leader among those that stay: its own index less the number of moved tokens before it.
    before = named(moved, length).cumsum(dim=1)
    return leads, moved, leader - before.gather(1, leader)


@cpu.compiled(
    "pair_and_cluster(Tensor x, int prefix, Tensor score, int attentive, int pairs, int clusters, int rounds) -> "
    "(Tensor, Tensor, Tensor)"
)
def _pair_and_cluster(
    x: Tensor, prefix: int, score: Tensor, attentive: int, pairs: int, clusters: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = score.shape
    left = attentive - pairs + clusters
    rest = length - left
    return cpu.places(score, batch, left), cpu.places(score, batch, rest), cpu.places(score, batch, rest)


@cpu.compiled("match_pairs(Tensor features, Tensor score, int pairs, int rounds) -> (Tensor, Tensor, Tensor)")
def _match_pairs(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = features.shape
    leads = cpu.places(score, batch, length - pairs)
    return leads, cpu.places(score, batch, pairs), cpu.places(score, batch, pairs)


@pair_and_cluster.on_cpu
def _(
    x: Tensor, prefix: int, score: Tensor, attentive: int, pairs: int, clusters: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor] | Any:
    if not x.is_contiguous() or not cpu.serves(x, score) or not 0 < clusters <= score.shape[1] - attentive:
        return NotImplemented
    return _pair_and_cluster(x, prefix, score.float(), attentive, pairs, clusters, rounds)


@match_pairs.on_cpu
def _(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    return _match_pairs(features, score.float(), pairs, rounds) if cpu.serves(features, score) else NotImplemented


@match_pairs.on_cuda
def _(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    fits = 0 < features.shape[1] <= cuda.MOST_TOKENS
    floats = features.dtype in cuda.FLOATS and score.dtype in cuda.FLOATS
    if not floats or not fits or not cuda.serves(features, score):
        return NotImplemented
    from tokensieve.ops.cuda import pairs as pairing

    with torch.autocast("cuda", enabled=False):
        unit = unit_rows(features)
        similarities = unit @ unit.transpose(1, 2)
    return pairing.lead_pairs(similarities, score, pairs, rounds)
