"""The arithmetic that methods share, against loops that do one thing at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.ops.density import density_peaks, squared_distances
from tokensieve.ops.matching import bipartite_matching, greedy_pairs, similarity
from tokensieve.ops.rows import complement, invert, one_hot, rank_descending, split_top, take_rows

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_features(seed: int, batch: int, length: int, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def one_by_one(similarities: Tensor, count: int) -> list[tuple[int, int]]:
    """Greedy matching as it is defined: the best pair of free tokens, again and again."""
    length = similarities.shape[0]
    free, pairs = set(range(length)), []
    for _ in range(count):
        pair = max(
            ((i, j) for i in sorted(free) for j in sorted(free) if i < j),
            key=lambda p: (float(similarities[p]), -p[0], -p[1]),
        )
        pairs.append(pair)
        free -= set(pair)
    return pairs


def pairs_of(similarities: Tensor, count: int, rounds: int) -> list[list[tuple[int, int]]]:
    first, second = greedy_pairs(similarities, count, rounds)
    assert first.shape == second.shape == (similarities.shape[0], count)
    return [list(zip(a, b, strict=True)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 24), data=st.data())
def test_greedy_pairs_are_those_found_one_by_one(seed: int, length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, length // 2))
    features = random_features(seed, 2, length, 5)
    similarities = similarity(features, features)
    for image, found in enumerate(pairs_of(similarities, count, rounds=length)):
        assert found == one_by_one(similarities[image], count)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(2, 24),
    rounds=st.integers(1, 6),
    values=st.integers(1, 4),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    data=st.data(),
)
def test_greedy_pairs_are_disjoint_and_as_many_as_asked(
    seed: int, length: int, rounds: int, values: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    # Few distinct values, so that nearly all similarities are tied, and too few rounds to finish.
    count = data.draw(st.integers(0, length // 2))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(values, (3, length, length), generator=generator).to(dtype)
    for found in pairs_of((drawn + drawn.transpose(1, 2)) / 2, count, rounds):
        members = [i for pair in found for i in pair]
        assert len(set(members)) == 2 * count
        assert all(0 <= i < j < length for i, j in found)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_greedy_pairs_of_equal_tokens(value: float) -> None:
    assert pairs_of(torch.full((1, 7, 7), value), 3, rounds=6) == [[(0, 1), (2, 3), (4, 5)]]


def test_six_rounds_find_nearly_all_pairs_of_random_tokens() -> None:
    """At the size of BAT's first site (K = 155, m = 33) on random features: how often rounds=6 is greedy to the pair.

    The default of BAT rests on this. Greedy matching of random points is the hard case: neighbourhoods chain.
    """
    features = random_features(0, 32, 155, 192)
    similarities = similarity(features, features)
    six, all_rounds = pairs_of(similarities, 33, 6), pairs_of(similarities, 33, 78)
    shared = [len(set(a) & set(b)) / 33 for a, b in zip(six, all_rounds, strict=True)]
    assert sum(shared) / len(shared) > 0.9
    assert min(shared) > 0.7


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 30), first=st.integers(0, 1), data=st.data())
def test_bipartite_matching_against_a_loop(seed: int, length: int, first: int, data: st.DataObject) -> None:
    side_a, side_b = list(range(first, length, 2)), list(range(1 - first, length, 2))
    remove = data.draw(st.integers(0, len(side_a)))
    metric = random_features(seed, 2, length, 6)
    keep, moved, onto = bipartite_matching(metric, remove, first)
    for image in range(2):
        unit = [row / row.norm() for row in metric[image]]
        edges = []
        for a in side_a:
            best = max(side_b, key=lambda b: (float(unit[a] @ unit[b]), -b))
            edges.append((float(unit[a] @ unit[best]), a, best))
        edges.sort(key=lambda e: -e[0])
        leaving = [a for _, a, _ in edges[:remove]]
        wanted = [a for a in side_a if a not in leaving] + side_b
        assert keep[image].tolist() == wanted
        assert moved[image].tolist() == leaving
        assert [wanted[place] for place in onto[image].tolist()] == [b for _, _, b in edges[:remove]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_bipartite_matching_measures_in_float32_or_better(dtype: torch.dtype) -> None:
    metric = random_features(1, 2, 40, 16, dtype)
    found = bipartite_matching(metric, 12)
    for a, b in zip(found, bipartite_matching(metric.double(), 12), strict=True):
        assert torch.equal(a, b)


def test_similarity_ignores_autocast() -> None:
    features = random_features(2, 1, 20, 16, torch.float32)
    plain = similarity(features, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarity(features, features), plain)
        assert torch.equal(squared_distances(features), squared_distances(features.clone()))
        assert squared_distances(features).dtype == torch.float32


def peaks_by_loop(rows: Tensor, clusters: int, neighbours: int | None = None) -> tuple[list[int], list[int]]:
    """Centres and, for every token, its centre. Distances are exact here: the inputs hold small whole numbers."""
    length, channels = rows.shape
    squared = [[float((rows[i] - rows[j]).square().sum()) / channels for j in range(length)] for i in range(length)]
    density = []
    for i in range(length):
        near = sorted(squared[i])[1 : neighbours + 1] if neighbours is not None else squared[i]
        density.append(math.exp(-sum(near) / len(near)))
    largest = math.sqrt(max(max(row) for row in squared))
    delta = []
    for i in range(length):
        denser = [j for j in range(length) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta.append(min((math.sqrt(squared[i][j]) for j in denser), default=largest))
    ranked = sorted(range(length), key=lambda i: (-density[i] * delta[i], i))
    centres = sorted(ranked[:clusters])
    return centres, [i if i in centres else min(centres, key=lambda c: (squared[i][c], c)) for i in range(length)]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 16), near=st.booleans(), data=st.data())
def test_density_peaks_against_a_loop(seed: int, length: int, near: bool, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, length))
    neighbours = data.draw(st.integers(1, length - 1)) if near else None
    features = (random_features(seed, 2, length, 4) * 3).round()
    centres, others, onto = density_peaks(features, clusters, neighbours)
    for image in range(2):
        wanted, joined = peaks_by_loop(features[image], clusters, neighbours)
        assert centres[image].tolist() == wanted
        assert others[image].tolist() == [i for i in range(length) if i not in wanted]
        found = [centres[image, place].item() for place in onto[image]]
        assert found == [joined[i] for i in others[image].tolist()]


@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_density_peaks_with_ties(clusters: int) -> None:
    # Corners of a square of side two: whole numbers, so densities are tied exactly and only position can decide.
    corners = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]], dtype=torch.float64)
    centres, others, onto = density_peaks(corners, clusters)
    wanted, joined = peaks_by_loop(corners[0], clusters)
    assert centres.tolist() == [wanted]
    assert [centres[0, place].item() for place in onto[0]] == [joined[i] for i in others[0].tolist()]


def test_density_peaks_of_equal_tokens_take_the_first() -> None:
    centres, others, onto = density_peaks(torch.ones(2, 6, 3), 2)
    assert centres.tolist() == [[0, 1]] * 2
    assert others.tolist() == [[2, 3, 4, 5]] * 2
    assert onto.tolist() == [[0, 0, 0, 0]] * 2


def test_density_does_not_underflow_for_tokens_far_apart() -> None:
    # The sum of squared distances of 100 such tokens is beyond exp's range in float32; their mean is not.
    features = random_features(4, 1, 100, 8, torch.float32) * 2
    assert torch.exp(-squared_distances(features).sum(dim=2)).max() == 0
    centres, _, _ = density_peaks(features, 10)
    assert centres.tolist()[0] != list(range(10))


@pytest.mark.parametrize("dtype", FLOATS)
def test_distances_are_float32_or_better(dtype: torch.dtype) -> None:
    features = random_features(5, 2, 9, 8, dtype)
    found = squared_distances(features)
    exact = torch.cdist(features.double(), features.double()).square() / 8
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 20), data=st.data())
def test_index_helpers(seed: int, length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, length))
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.stack([torch.randperm(length, generator=generator) for _ in range(3)])
    assert torch.equal(invert(permutation).gather(1, permutation), torch.arange(length).expand(3, -1))
    chosen = permutation[:, :count]
    for row, rest in zip(chosen.tolist(), complement(chosen, length).tolist(), strict=True):
        assert rest == sorted(set(range(length)) - set(row))
    x = torch.randn(3, length, 4, generator=generator)
    rows = take_rows(x, chosen)
    assert rows.shape == (3, count, 4)
    for image in range(3):
        assert torch.equal(rows[image], x[image][chosen[image]])
        assert torch.equal(take_rows(x[..., 0], chosen)[image], x[image, chosen[image], 0])
    hot = one_hot(permutation, length, torch.float64)
    assert torch.equal(hot.argmax(dim=1), permutation) and hot.sum().item() == 3 * length


def test_equal_scores_keep_the_lower_index_first() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    assert rank_descending(score).tolist() == [[1, 2, 4, 0, 3]]
    best, rest = split_top(score, 2)
    assert best.tolist() == [[1, 2]] and rest.tolist() == [[0, 3, 4]]
