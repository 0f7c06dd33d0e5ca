"""Density-peak clustering, batched (Rodriguez and Laio 2014; simplified as in Long et al. 2022, arXiv 2211.11315)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.ops import cpu, cuda
from tokensieve.ops._operator import operator
from tokensieve.ops.rows import at_least_float32, split_top


def squared_distances(features: Tensor) -> Tensor:
    """(B, M, C) to ‖x_i − x_j‖² / C, (B, M, M), in float32 or better, outside autocast."""
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        norms = features.square().sum(dim=2)
        product = features @ features.transpose(1, 2)
        distances = norms.unsqueeze(2) + norms.unsqueeze(1) - 2 * product
        # One side of the diagonal, mirrored: rounding must not tell x_i to x_j from x_j to x_i, nor x_i from itself.
        distances = distances.triu(diagonal=1)
        return (distances + distances.transpose(1, 2)).clamp(min=0) / features.shape[2]


@operator
def density_peaks(
    features: Tensor, clusters: int, neighbours: int | None = None, itself: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster tokens around the peaks of their density.

    With d_ij = ‖x_i − x_j‖ / √C: density ρ_i = exp(−mean_j d_ij²), over all tokens or the ``neighbours`` nearest; δ_i
    is the smallest distance to a denser token, for the densest token the largest distance there is. The tokens of the
    largest ρ·δ are centres and every other token joins its nearest centre. Of equally dense tokens the first is denser.

    Args:
        features: (B, M, C).
        clusters: number of clusters, 1 to M.
        neighbours: how many nearest tokens the density averages over; None for all.
        itself: whether a token is one of its own nearest, at distance 0; no kernel serves that.

    Returns:
        ``centres`` (B, clusters) ascending, ``others`` (B, M - clusters) ascending, ``onto`` (B, M - clusters): the
        place in ``centres`` of the centre that each of the others joins.
    """
    squared = squared_distances(features)
    first = 0 if itself else 1
    near = squared
    if neighbours is not None:
        near = squared.topk(neighbours + first, dim=2, largest=False).values[..., first:]
    density = torch.exp(-near.mean(dim=2))
    length = features.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=features.device).tril(-1)
    higher, own = density.unsqueeze(1), density.unsqueeze(2)
    denser = (higher > own) | ((higher == own) & earlier)
    distance = squared.sqrt()
    largest = distance.amax(dim=(1, 2)).unsqueeze(1)
    delta = distance.masked_fill(~denser, torch.inf).amin(dim=2).minimum(largest)
    centres, others = split_top(density * delta, clusters)
    to_centres = squared.gather(1, others.unsqueeze(2).expand(-1, -1, length))
    to_centres = to_centres.gather(2, centres.unsqueeze(1).expand(-1, others.shape[1], -1))
    return centres, others, to_centres.argmin(dim=2)


@cpu.compiled("density_peaks(Tensor features, int clusters, int neighbours) -> (Tensor, Tensor, Tensor)")
def _density_peaks(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = features.shape
    rest = length - clusters
    return (
        cpu.places(features, batch, clusters),
        cpu.places(features, batch, rest),
        cpu.places(features, batch, rest),
    )


@density_peaks.on_cpu
def _(
    features: Tensor, clusters: int, neighbours: int | None = None, itself: bool = False
) -> tuple[Tensor, Tensor, Tensor] | Any:
    served = not itself and cpu.serves(features)
    return _density_peaks(features, clusters, neighbours or 0) if served else NotImplemented


@density_peaks.on_cuda
def _(
    features: Tensor, clusters: int, neighbours: int | None = None, itself: bool = False
) -> tuple[Tensor, Tensor, Tensor] | Any:
    if itself or features.dtype not in cuda.FLOATS or features.shape[1] > cuda.MOST_TOKENS or not cuda.serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import density

    return density.density_peaks(features, clusters, neighbours)
