"""Local Outlier Factor (Breunig et al., 2000) of scores on a line."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.rows import at_least_float32

THRESHOLD = 1.5  # above it a score is an outlier: scikit-learn's contamination="auto"
FLOOR = 1e-10  # added to a mean distance, so that the density of equal scores is finite; scikit-learn's
ROWS = 1024  # distances are looked at so many rows at a time, so that N × N is never held


def outliers(scores: Tensor, neighbours: int) -> Tensor:
    """Which scores lie apart from their neighbours, as ``sklearn.neighbors.LocalOutlierFactor`` says it.

    With d_k(o) the distance of o to its k-th neighbour, the density of p is 1 / mean over its neighbours o of
    max(d(p, o), d_k(o)); p is an outlier where the mean density of its neighbours is more than 1.5 times its own.

    Args:
        scores: (N).
        neighbours: k; N − 1 where there are fewer others. Of equally distant ones those of lower index.

    Returns:
        (N) bool; all False for fewer than two scores.
    """
    if len(scores) < 2:
        return torch.zeros_like(scores, dtype=torch.bool)
    distance, nearest = _nearest(at_least_float32(scores), min(neighbours, len(scores) - 1))
    reach = distance.maximum(distance[:, -1][nearest])
    density = 1 / (reach.mean(dim=1) + FLOOR)
    return (density[nearest] / density.unsqueeze(1)).mean(dim=1) > THRESHOLD


def _nearest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(N, count) the distances to the nearest others, ascending, and which they are."""
    parts = []
    for start in range(0, len(scores), ROWS):
        distance = (scores[start : start + ROWS].unsqueeze(1) - scores).abs()
        distance.diagonal(offset=start).fill_(torch.inf)
        near = distance.sort(dim=1, stable=True)
        parts.append((near.values[:, :count], near.indices[:, :count]))
    distances, places = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(places)
