"""Batched agglomerative clustering gives scikit-learn's clusters where all distances differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from tokensieve.methods._agglomerative import Linkage, agglomerate, cosine_distances


def partition(groups: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, g in enumerate(groups) if g == number) for number in set(groups)}


def plain(distances: Tensor, clusters: int, linkage: Linkage) -> Tensor:
    return agglomerate.__wrapped__(distances, clusters, linkage)


@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
@pytest.mark.parametrize(("length", "clusters"), [(196, 137), (196, 20), (60, 1), (7, 6), (5, 5)])
@pytest.mark.parametrize("door", [agglomerate, plain])
def test_the_clusters_are_those_of_scikit_learn(
    door: Callable[[Tensor, int, Linkage], Tensor], length: int, clusters: int, linkage: Linkage
) -> None:
    features = torch.randn(3, length, 16, generator=torch.Generator().manual_seed(length + clusters))
    distances = cosine_distances(features)
    assert torch.equal(distances, distances.transpose(1, 2))
    for image, groups in zip(distances, door(distances, clusters, linkage), strict=True):
        wanted = AgglomerativeClustering(clusters, metric="precomputed", linkage=linkage).fit_predict(image.numpy())
        assert partition(groups.tolist()) == partition(wanted.tolist())
        first = [groups.tolist().index(number) for number in range(clusters)]
        assert first == sorted(first)


@pytest.mark.parametrize("door", [agglomerate, plain])
def test_equally_near_pairs_are_joined_in_order(door: Callable[[Tensor, int, Linkage], Tensor]) -> None:
    distances = 1 - torch.eye(5)
    for linkage in ("single", "complete", "average"):
        assert door(distances.expand(2, 5, 5), 3, linkage).tolist() == [[0, 0, 0, 1, 2]] * 2
