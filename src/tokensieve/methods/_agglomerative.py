"""Agglomerative clustering, batched: a whole batch joins its nearest clusters step by step."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokensieve.ops import cpu
from tokensieve.ops._operator import operator
from tokensieve.ops.matching import similarity

Linkage = Literal["single", "complete", "average"]
LINKAGES: tuple[Linkage, ...] = get_args(Linkage)  # as the kernel numbers them


def cosine_distances(features: Tensor) -> Tensor:
    """(B, M, D) to one minus the cosine of every pair, (B, M, M), in float32 or better, symmetric to the last bit."""
    return distances_between(similarity(features, features))


@operator
def distances_between(similarities: Tensor) -> Tensor:
    """(B, M, M) to one minus what is right of the diagonal, mirrored; zero on it."""
    distances = (1 - similarities).triu(diagonal=1)
    return distances + distances.transpose(1, 2)


@operator
def agglomerate(distances: Tensor, clusters: int, linkage: Linkage) -> Tensor:
    """Join the two nearest clusters until ``clusters`` are left, in every image of the batch at once.

    The distance between two clusters is the smallest ("single"), the largest ("complete") or the mean ("average") of
    the distances between their members. Where all distances differ these are the clusters of scikit-learn's
    ``AgglomerativeClustering``; of equally near pairs the first in order of position is joined.

    Args:
        distances: (B, M, M) symmetric, finite; the diagonal is ignored. The answer carries no gradient.
        clusters: number of clusters, 1 to M.
        linkage: as above.

    Returns:
        (B, M) int64 group numbers in [0, clusters), in order of each group's first member.
    """
    batch, length, _ = distances.shape
    positions = torch.arange(length, device=distances.device)
    itself = torch.eye(length, dtype=torch.bool, device=distances.device)
    near = distances.detach().masked_fill(itself, torch.inf)
    size = torch.ones(batch, length, dtype=near.dtype, device=near.device)
    leader = positions.expand(batch, -1)
    for _ in range(length - clusters):
        pair = near.flatten(1).argmin(dim=1, keepdim=True)
        first, second = pair // length, pair % length  # the matrix is symmetric, so the first hit has first < second
        left, right = (near.gather(1, row.unsqueeze(2).expand(-1, 1, length)).squeeze(1) for row in (first, second))
        if linkage == "single":
            joined = torch.minimum(left, right)
        elif linkage == "complete":
            joined = torch.maximum(left, right)
        else:
            one, other = size.gather(1, first), size.gather(1, second)
            joined = (one * left + other * right) / (one + other)
            size = size + other * (positions == first)
        gone, led = positions == second, positions == first
        joined = joined.masked_fill(gone | led, torch.inf)
        row = led.unsqueeze(2)
        near = torch.where(row, joined.unsqueeze(1), near)
        near = torch.where(row.transpose(1, 2), joined.unsqueeze(2), near)
        near = near.masked_fill(gone.unsqueeze(2) | gone.unsqueeze(1), torch.inf)
        leader = torch.where(leader == second, first, leader)
    number = (leader == positions).cumsum(dim=1) - 1
    return number.gather(1, leader)


@cpu.compiled("distances_between(Tensor similarities) -> Tensor")
def _distances_between(similarities: Tensor) -> Tensor:
    return torch.empty_like(similarities)


@cpu.compiled("agglomerate(Tensor distances, int clusters, int linkage) -> Tensor")
def _agglomerate(distances: Tensor, clusters: int, linkage: int) -> Tensor:
    return cpu.places(distances, *distances.shape[:2])


@distances_between.on_cpu
def _(similarities: Tensor) -> Tensor | Any:
    if similarities.dtype != torch.float32 or not similarities.is_contiguous() or not cpu.serves(similarities):
        return NotImplemented
    return _distances_between(similarities)


@agglomerate.on_cpu
def _(distances: Tensor, clusters: int, linkage: Linkage) -> Tensor | Any:
    if distances.dtype != torch.float32 or not cpu.serves(distances):
        return NotImplemented
    return _agglomerate(distances.contiguous(), clusters, LINKAGES.index(linkage))
