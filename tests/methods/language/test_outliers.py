"""The Local Outlier Factor on a line is that of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from tokensieve.methods.language import _outliers
from tokensieve.methods.language._outliers import outliers


def by_scikit_learn(scores: Tensor, neighbours: int) -> list[bool]:
    found = LocalOutlierFactor(n_neighbors=min(neighbours, len(scores) - 1), contamination="auto")
    found.fit(scores.numpy().reshape(-1, 1))
    return list(map(bool, np.asarray(found.negative_outlier_factor_) < -1.5))


def drawn(kind: str, count: int, seed: int) -> Tensor:
    normal = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if kind == "attention":
        return (3 * normal).softmax(dim=0)
    return normal if kind == "normal" else torch.where(normal > 1, 8 + normal, normal / 10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("neighbours", [1, 2, 10, 20])
@pytest.mark.parametrize("count", [3, 21, 100, 576])
@pytest.mark.parametrize("kind", ["normal", "attention", "clusters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outliers_are_those_of_scikit_learn(
    kind: str, count: int, neighbours: int, seed: int, dtype: torch.dtype
) -> None:
    scores = drawn(kind, count, seed).to(dtype)
    assert outliers(scores, neighbours).tolist() == by_scikit_learn(scores, neighbours)


def test_these_scores_have_outliers_on_both_sides() -> None:
    scores = torch.cat([torch.linspace(0, 1, 60, dtype=torch.float64), torch.tensor([-5.0, 9.0], dtype=torch.float64)])
    assert outliers(scores, 20).nonzero().flatten().tolist() == [60, 61]


def test_rows_at_a_time_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = drawn("attention", 100, 0)
    expected = outliers(scores, 20)
    monkeypatch.setattr(_outliers, "ROWS", 7)
    assert outliers(scores, 20).tolist() == expected.tolist()
    assert 0 < int(expected.sum()) < 100


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_equal_scores_and_single_ones_have_no_outliers(count: int) -> None:
    assert outliers(torch.full((count,), 0.25), 20).tolist() == [False] * count


def test_of_equally_distant_neighbours_the_lower_index_counts() -> None:
    # Both neighbours of the middle one are as far; the one that comes first decides whether it is an outlier.
    middle, near, far = 0.0, [1.0, 1.01, 1.02], [-1.0, -3.0, -5.0]
    first = torch.tensor([middle, *near, *far], dtype=torch.float64)
    last = torch.tensor([middle, *far, *near], dtype=torch.float64)
    assert bool(outliers(first, 1)[0]) and not bool(outliers(last, 1)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_looked_at_in_single(dtype: torch.dtype) -> None:
    scores = drawn("clusters", 80, 1).to(dtype)
    assert outliers(scores, 10).tolist() == outliers(scores.float(), 10).tolist()
