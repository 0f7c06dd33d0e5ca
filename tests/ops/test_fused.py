"""Every kernel against the plain torch function it stands in for: random shapes, dtypes, strides and ties."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.attention.kernel import attend, key_bias
from tokensieve.attention.selector import Selector, selected_columns
from tokensieve.attention.signals import Attended, class_attention, column_sums
from tokensieve.errors import TokensieveWarning
from tokensieve.methods._agglomerative import agglomerate, distances_between
from tokensieve.methods._attentive import pair_and_cluster
from tokensieve.methods._local_density import local_distances
from tokensieve.methods._superpixels import superpixels
from tokensieve.ops import cpu as native
from tokensieve.ops.bands import Bands
from tokensieve.ops.cpu.build import library_path
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, match_halves, match_pairs, unit_rows
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_fused, split_top
from tokensieve.ops.windows import Windows, window_products, window_sums
from tokensieve.tokens.decision import Assignment, ragged_merge
from tokensieve.tokens.move import move_tokens, put_back

BUILT = library_path().exists()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_kernels = pytest.mark.skipif(
    not BUILT and shutil.which("g++") is None, reason="no C++ compiler here: the kernels cannot be built"
)
pytestmark = needs_kernels
seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from(DTYPES)
some = settings(max_examples=25, deadline=None)


def reference(door: Callable[..., Any]) -> Callable[..., Any]:
    return door.__wrapped__  # type: ignore[attr-defined, no-any-return]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attended(seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype, biased: bool) -> Attended:
    """Queries, keys and values laid out as timm's attention has them: views of one projection."""
    qkv = random(seed, batch, length, 3, heads, dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    bias = random(seed + 1, batch, 1, 1, length) if biased else None
    return Attended(qkv[0], qkv[1], qkv[2], dim**-0.5, bias)


def exactly(given_to: Attended) -> Attended:
    """The same numbers in float64."""
    queries, keys, values = (t.double() for t in (given_to.queries, given_to.keys, given_to.values))
    return Attended(queries, keys, values, given_to.scale, given_to.bias)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 4e-2, "atol": 4e-3}


def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    assert BUILT, "run `python -m tokensieve.ops.cpu` (make setup does)"
    assert native.available()


def test_every_kernel_has_a_reference_of_its_name() -> None:
    doors = [class_attention, column_sums, move_tokens, put_back, density_peaks, bipartite_matching, match_pairs]
    doors += [unit_rows, head_mean, split_top, selected_columns, attend, key_bias, agglomerate, distances_between]
    doors += [window_products, window_sums]
    doors += [match_halves, split_fused, pair_and_cluster]
    kernels = {
        name
        for name, value in vars(native).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == native.__name__
    }
    assert {door.__name__ for door in doors} == kernels - {"available", "attends", "takes_windows"}


@some
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([1, 8, 24, 64]),
    dtypes,
    st.booleans(),
)
def test_class_attention(
    seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype, biased: bool
) -> None:
    given_to = attended(seed, batch, heads, length, dim, dtype, biased)
    answer = native.class_attention(given_to)
    exact = exactly(given_to)
    torch.testing.assert_close(answer.double(), reference(class_attention)(exact), rtol=1e-4, atol=1e-6)


@some
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(1, 9),
    dtypes,
    st.booleans(),
    st.booleans(),
)
def test_column_sums(
    seed: int, batch: int, heads: int, length: int, stride: int, dtype: torch.dtype, biased: bool, voted: bool
) -> None:
    given_to = attended(seed, batch, heads, length, 16, dtype, biased)
    voters = random(seed + 2, batch, length) > -0.5 if voted else None
    answer = native.column_sums(given_to, voters, 8, stride)
    exact = exactly(given_to)
    torch.testing.assert_close(answer.double(), reference(column_sums)(exact, voters, 8, stride), rtol=1e-4, atol=1e-5)


def test_padding_that_no_query_may_see_gets_exactly_nothing() -> None:
    given_to = attended(0, 2, 3, 20, 8, torch.float32, False)
    bias = torch.zeros(2, 1, 1, 20)
    bias[..., 15:] = -torch.inf
    hidden = Attended(given_to.queries, given_to.keys, given_to.values, given_to.scale, bias)
    assert bool((native.class_attention(hidden)[:, 15:] == 0).all())
    assert bool((native.column_sums(hidden, None, 8, 1)[..., 15:] == 0).all())


@some
@given(
    seeds,
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 6, 12, 16]),
    st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    dtypes,
)
def test_selected_columns(
    seed: int, batch: int, heads: int, length: int, stride: int, biased: bool, logarithm: bool, dtype: torch.dtype
) -> None:
    given_to = attended(seed, batch, heads, length, 8, dtype, biased)
    torch.manual_seed(seed)
    selector = Selector(heads, scaled=bool(seed % 2)).to(dtype)
    for parameter in selector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sum_of = "log_probabilities" if logarithm else "probabilities"
    with torch.no_grad():
        answer = native.selected_columns(selector, given_to, 8, stride, sum_of)
        wanted = reference(selected_columns)(selector.double(), exactly(given_to), 8, stride, sum_of)
    torch.testing.assert_close(answer.double(), wanted, rtol=1e-4, atol=1e-4)


@some
@given(seeds, st.integers(1, 4), st.integers(1, 60), st.data(), dtypes)
def test_split_top_also_with_ties(seed: int, batch: int, length: int, data: st.DataObject, dtype: torch.dtype) -> None:
    score = (random(seed, batch, length) * 2).round().to(dtype)  # many equal values, both zeros among them
    count = data.draw(st.integers(0, length))
    answer, wanted = native.split_top(score, count), reference(split_top)(score, count)
    assert torch.equal(answer[0], wanted[0]) and torch.equal(answer[1], wanted[1])


def test_split_top_sorts_infinities_and_nan_as_torch_does() -> None:
    score = torch.tensor([[1.0, -torch.inf, torch.nan, torch.inf, 0.0, -0.0]])
    for count in range(7):
        for answer, wanted in zip(native.split_top(score, count), reference(split_top)(score, count), strict=True):
            assert torch.equal(answer, wanted)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 30), st.integers(1, 40), dtypes)
def test_head_mean_and_unit_rows(seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype) -> None:
    features = random(seed, batch, length, heads, dim, dtype=dtype).transpose(1, 2)
    torch.testing.assert_close(native.head_mean(features), reference(head_mean)(features), rtol=1e-5, atol=1e-6)
    rows = features[:, 0]
    torch.testing.assert_close(native.unit_rows(rows), reference(unit_rows)(rows), rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_one() -> None:
    assert not bool(native.unit_rows(torch.zeros(1, 2, 5)).any())


@some
@given(seeds, st.integers(1, 3), st.integers(2, 150), st.integers(0, 1), st.data(), dtypes)
def test_bipartite_matching(
    seed: int, batch: int, length: int, first: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    side_a = (length + 1 - first) // 2
    remove = data.draw(st.integers(0, side_a))
    metric = random(seed, batch, length, 12, dtype=dtype)
    for answer, wanted in zip(
        native.bipartite_matching(metric, remove, first),
        reference(bipartite_matching)(metric.double(), remove, first),
        strict=True,
    ):
        assert torch.equal(answer, wanted)


def test_bipartite_matching_breaks_ties_by_index() -> None:
    metric = torch.eye(3)[torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1, 2, 0]])]
    for first in (0, 1):
        for remove in range(6):
            for answer, wanted in zip(
                native.bipartite_matching(metric, remove, first),
                reference(bipartite_matching)(metric, remove, first),
                strict=True,
            ):
                assert torch.equal(answer, wanted)


@some
@given(seeds, st.integers(1, 3), st.integers(2, 90), st.integers(1, 6), st.booleans(), dtypes, st.data())
def test_match_pairs(
    seed: int, batch: int, length: int, rounds: int, ties: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    features = random(seed, batch, length, 6, dtype=dtype)
    if ties:  # cosines of exactly 0, 1 and -1
        features = torch.eye(6, dtype=dtype)[(features[..., 0] * 10).long() % 6] * features[..., :1].sign()
    score = (random(seed + 1, batch, length) * 2).round()
    pairs = data.draw(st.integers(0, length // 2))
    for answer, wanted in zip(
        native.match_pairs(features, score, pairs, rounds),
        reference(match_pairs)(features.double(), score, pairs, rounds),
        strict=True,
    ):
        assert torch.equal(answer, wanted)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(2, 60), st.integers(0, 1), st.data(), dtypes)
def test_match_halves(
    seed: int, batch: int, heads: int, length: int, first: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    keys = random(seed, batch, length, heads, 16, dtype=dtype).transpose(1, 2)
    side = length // 2 if first else (length + 1) // 2
    remove = data.draw(st.integers(0, min(side, length - side)))
    expected = bipartite_matching(head_mean(keys), remove, first)
    for ours, theirs in zip(native.match_halves(keys, remove, first), expected, strict=True):
        assert torch.equal(ours, theirs)


@some
@given(seeds, st.integers(1, 4), st.integers(1, 60), st.data(), dtypes)
def test_split_fused_also_with_ties(
    seed: int, batch: int, length: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    score = random(seed, batch, length).mul(3).round().to(dtype)
    count = data.draw(st.integers(1, length))
    for ours, theirs in zip(native.split_fused(score, count), reference(split_fused)(score, count), strict=True):
        assert torch.equal(ours, theirs)


@some
@given(seeds, st.integers(1, 3), st.integers(4, 60), st.integers(0, 2), st.integers(1, 4), st.data(), dtypes)
def test_pair_and_cluster_is_what_its_parts_give(
    seed: int, batch: int, length: int, prefix: int, rounds: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    x = random(seed, batch, prefix + length, 24, dtype=dtype)
    score = random(seed + 1, batch, length).mul(3).round()
    attentive = data.draw(st.integers(1, length - 1))
    pairs = data.draw(st.integers(0, attentive // 2))
    clusters = data.draw(st.integers(1, length - attentive))
    arguments = (x, prefix, score, attentive, pairs, clusters, rounds)
    # The parts of the reference are kernels here, each tested on its own: what is tested is how they are joined.
    for ours, theirs in zip(native.pair_and_cluster(*arguments), reference(pair_and_cluster)(*arguments), strict=True):
        assert torch.equal(ours, theirs)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 90), dtypes, st.data())
def test_density_peaks(seed: int, batch: int, length: int, dtype: torch.dtype, data: st.DataObject) -> None:
    features = random(seed, batch, length, 7, dtype=dtype)
    clusters = data.draw(st.integers(1, length))
    neighbours = data.draw(st.sampled_from([None, *range(1, min(length, 6))]))
    for answer, wanted in zip(
        native.density_peaks(features, clusters, neighbours),
        reference(density_peaks)(features.double(), clusters, neighbours),
        strict=True,
    ):
        assert torch.equal(answer, wanted)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 40), st.sampled_from(["single", "complete", "average"]), st.data())
def test_agglomerate(seed: int, batch: int, length: int, linkage: Any, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, length))
    features = random(seed, batch, length, 3)
    distances = (features.unsqueeze(1) - features.unsqueeze(2)).square().sum(dim=3)
    if data.draw(st.booleans()):
        distances = distances.round() if linkage != "average" else distances  # whole numbers: many are equal
    before = distances.clone()
    answer = native.agglomerate(distances, clusters, linkage)
    assert torch.equal(distances, before)
    assert torch.equal(answer, reference(agglomerate)(distances, clusters, linkage))


@some
@given(seeds, st.integers(1, 3), st.integers(1, 50))
def test_distances_between(seed: int, batch: int, length: int) -> None:
    similarities = random(seed, batch, length, length)
    answer = native.distances_between(similarities)
    assert torch.equal(answer, reference(distances_between)(similarities))


sides = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))


@some
@given(seeds, st.integers(1, 3), sides, st.integers(1, 33))
def test_windows(seed: int, batch: int, grid: tuple[int, int, int, int, int], dim: int) -> None:
    rows, columns, height, width, reach = grid
    windows = Windows(rows, columns, min(height, rows), min(width, columns), reach)
    x = random(seed, batch, rows * columns, dim)
    centres = random(seed + 1, batch, windows.height * windows.width, dim)
    products = native.window_products(x, centres, windows)
    wanted = reference(window_products)(x.double(), centres.double(), windows)
    torch.testing.assert_close(products, wanted.float(), rtol=1e-5, atol=1e-5)
    weights = random(seed + 2, *products.shape) * windows.near(x.device)[0]
    sums = native.window_sums(weights, x, windows)
    wanted = reference(window_sums)(weights.double(), x.double(), windows)
    torch.testing.assert_close(sums, wanted.float(), rtol=1e-5, atol=1e-4)


@some
@given(seeds, st.integers(1, 3), sides, st.booleans())
def test_superpixels_by_windows_and_by_bands(
    seed: int, batch: int, grid: tuple[int, int, int, int, int], everywhere: bool
) -> None:
    """Bands are what a gradient takes; a few rounds carry rounding further."""
    rows, columns, height, width, reach = grid
    bands = Bands(rows, columns, min(height, rows), min(width, columns), reach)
    x = random(seed, batch, rows * columns, 12)
    cells, blend = superpixels(x, bands, 2, None, 5, everywhere=everywhere)
    others, back = superpixels(x.clone().requires_grad_(), bands, 2, None, 5, everywhere=everywhere)
    assert isinstance(cells.near, Windows) and isinstance(others.near, Bands)
    torch.testing.assert_close(cells.mean(x), others.mean(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cells.totals(), others.totals(), rtol=1e-3, atol=1e-3)
    new = random(seed + 1, batch, bands.height * bands.width, 3)
    torch.testing.assert_close(blend(new), back(new), rtol=1e-3, atol=1e-3)


@some
@given(seeds, st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 60))
def test_local_distances_by_windows_and_by_bands(seed: int, batch: int, rows: int, columns: int, count: int) -> None:
    """Float64 takes the bands."""
    x = random(seed, batch, rows * columns, 12)
    (found, number, there), (wanted, numbers, same) = (
        local_distances(values, rows, columns, count) for values in (x, x.double())
    )
    assert torch.equal(number, numbers) and torch.equal(there, same)
    torch.testing.assert_close(found[:, there], wanted[:, there].float(), rtol=1e-4, atol=1e-3)


def test_windows_of_other_grids_are_refused() -> None:
    x, windows = torch.randn(1, 12, 4), Windows(3, 4, 2, 2, 1)
    with pytest.raises(RuntimeError, match="12 patches"):
        native.window_products(x[:, 1:], torch.randn(1, 4, 4), windows)
    with pytest.raises(RuntimeError, match="4 cells"):
        native.window_products(x, torch.randn(1, 5, 4), windows)
    with pytest.raises(RuntimeError, match="12 patches"):
        native.window_sums(torch.rand(1, 12, 9), x[:, 1:], windows)
    with pytest.raises(RuntimeError, match="9 weights"):
        native.window_sums(torch.rand(1, 12, 8), x, windows)


def test_density_peaks_of_equal_tokens_prefers_the_lower_index() -> None:
    features = torch.ones(2, 9, 4)
    for answer, wanted in zip(native.density_peaks(features, 3), reference(density_peaks)(features, 3), strict=True):
        assert torch.equal(answer, wanted)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 40), st.integers(0, 3))
def test_key_bias(seed: int, batch: int, length: int, prefix: int) -> None:
    size = random(seed, batch, length).mul(3).round().clamp(min=0)
    torch.testing.assert_close(
        native.key_bias(prefix, size, None, None), reference(key_bias)(prefix, size, None, None), rtol=1e-6, atol=0
    )
    assert native.key_bias(prefix, None, None, None) is NotImplemented
    assert native.key_bias(prefix, size, size > 0, None) is NotImplemented


@some
@given(seeds, st.integers(1, 3), st.integers(2, 30), st.integers(0, 2), dtypes, st.data())
def test_move_tokens(seed: int, batch: int, length: int, prefix: int, dtype: torch.dtype, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, length))
    merging = data.draw(st.integers(0, length - kept))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1)
    weighted, sized = data.draw(st.booleans()), data.draw(st.booleans())
    assignment = Assignment(
        keep=order[:, :kept],
        moved=order[:, kept : kept + merging] if merging else None,
        onto=torch.randint(-1, kept, (batch, merging), generator=generator) if merging else None,
        dropped=order[:, kept + merging :],
        weight=torch.rand(batch, length, generator=generator) if weighted else None,
        reduce=data.draw(st.sampled_from(["mean", "sum"])),
    )
    x = random(seed, batch, prefix + length, 5, dtype=dtype)
    group = torch.randint(-1, length, (batch, length + 4), generator=generator)
    rep = torch.arange(length).expand(batch, -1)
    size = torch.randint(1, 5, (batch, length), generator=generator).float() if sized else None
    bias = random(seed + 2, 5, dtype=dtype) if data.draw(st.booleans()) else None
    norm = Norm(random(seed + 1, 5, dtype=dtype), bias, 1e-5) if data.draw(st.booleans()) else None
    answer, wanted = (
        native.move_tokens(x, group, rep, size, assignment, norm),
        reference(move_tokens)(x, group, rep, size, assignment, norm),
    )
    torch.testing.assert_close(answer[0], wanted[0], **tolerance(dtype))
    assert (answer[5] is None) == (norm is None)
    if norm is not None:
        torch.testing.assert_close(answer[5], norm(answer[0]), **tolerance(dtype))
    for place in (1, 2, 4):
        assert torch.equal(answer[place], wanted[place])
    assert (answer[3] is None) == (wanted[3] is None)
    if answer[3] is not None:
        torch.testing.assert_close(answer[3], wanted[3])
    alone = torch.ones(batch, kept, dtype=torch.bool)
    if assignment.onto is not None:
        joined = torch.nn.functional.one_hot(assignment.onto + 1, kept + 1).sum(dim=1)[:, 1:]
        alone = joined == 0
    untouched = x[:, prefix:].gather(1, assignment.keep.unsqueeze(2).expand(-1, -1, 5))
    assert torch.equal(answer[0][:, prefix:][alone], untouched[alone])


@some
@given(seeds, st.integers(1, 3), st.integers(2, 30), st.integers(0, 2), dtypes, st.data())
def test_move_tokens_of_unequal_numbers(
    seed: int, batch: int, length: int, prefix: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Slots of padding: what their old tokens join, those that join nothing, and merges beside them."""
    kept = data.draw(st.integers(1, length))
    merging = data.draw(st.integers(0, length - kept))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1)
    alive = torch.rand(batch, kept, generator=generator) < data.draw(st.sampled_from([0.2, 0.7, 1.0]))
    onto = torch.randint(-1, kept, (batch, merging + kept), generator=generator)
    weighted, sized, moves, pads = (data.draw(st.booleans()) for _ in range(4))
    assignment = Assignment(
        keep=order[:, :kept],
        moved=order[:, kept : kept + merging] if moves else None,
        onto=onto[:, :merging] if moves else None,
        dropped=order[:, kept + merging :] if moves else order[:, kept:],
        weight=torch.rand(batch, length, generator=generator) if weighted else None,
        reduce=data.draw(st.sampled_from(["mean", "sum"])),
        alive=alive,
        padding_onto=onto[:, merging:] if pads else None,
    )
    x = random(seed, batch, prefix + length, 5, dtype=dtype)
    group = torch.randint(-1, length, (batch, length + 4), generator=generator)
    rep = torch.arange(length).expand(batch, -1)
    size = torch.randint(1, 5, (batch, length), generator=generator).float() if sized else None
    answer, wanted = (
        native.move_tokens(x, group, rep, size, assignment),
        reference(move_tokens)(x, group, rep, size, assignment),
    )
    torch.testing.assert_close(answer[0], wanted[0], **tolerance(dtype))
    for place in (1, 2, 4):
        assert torch.equal(answer[place], wanted[place])
    assert (answer[3] is None) == (wanted[3] is None)
    if answer[3] is not None:
        torch.testing.assert_close(answer[3], wanted[3])


@some
@given(seeds, st.integers(2, 4), st.integers(2, 30), st.integers(0, 1), st.booleans())
def test_ragged_merges_by_kernel_and_by_reference(
    seed: int, batch: int, length: int, prefix: int, padded: bool
) -> None:
    """What methods give: pairs that join in some images, with slots that are empty from before or without."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(length)
    alive = torch.rand(batch, length, generator=generator) < 0.8 if padded else None
    joins = positions.expand(batch, -1).clone()
    for image in joins:
        pairs = torch.randperm(length, generator=generator)[: int(torch.randint(length, (), generator=generator))]
        image[pairs[len(pairs) // 2 :][: len(pairs) // 2]] = pairs[: len(pairs) // 2]
    if alive is not None:
        alive[:, 0] = True
        joins = torch.where(alive & alive.gather(1, joins), joins, positions)
    assignment = ragged_merge(joins, alive)
    x, rep = random(seed, batch, prefix + length, 5), positions.expand(batch, -1)
    size = torch.ones(batch, length) if alive is None else alive.float()
    answer = native.move_tokens(x, rep, rep, size, assignment)
    wanted = reference(move_tokens)(x, rep, rep, size, assignment)
    left = torch.ones_like(wanted[3], dtype=torch.bool) if assignment.alive is None else assignment.alive
    if assignment.alive is None and alive is not None:
        left = alive.gather(1, assignment.keep)
    torch.testing.assert_close(answer[0][:, prefix:][left], wanted[0][:, prefix:][left], rtol=2e-5, atol=1e-6)
    assert torch.equal(answer[0][:, :prefix], x[:, :prefix])
    assert answer[0].isfinite().all()
    assert torch.equal(answer[4], wanted[4]) and torch.equal(answer[2], wanted[2])
    torch.testing.assert_close(answer[3][left], wanted[3][left])
    assert float(answer[3][left].sum()) == float(size.sum())


def test_an_assignment_that_names_no_token_is_refused_and_reads_no_memory() -> None:
    x = torch.randn(1, 4, 3)
    rep = torch.arange(4).unsqueeze(0)
    with pytest.raises(RuntimeError, match="names a token that is not there"):
        native.move_tokens(x, rep, rep, None, Assignment(keep=torch.tensor([[0, 9]])))
    with pytest.raises(RuntimeError, match="names a token that is not there"):
        native.put_back(x, torch.tensor([[7]]), None, 0, False)


@some
@given(seeds, st.integers(1, 3), st.integers(1, 20), st.integers(0, 2), st.booleans(), st.booleans(), dtypes)
def test_put_back(
    seed: int, batch: int, present: int, prefix: int, with_prefix: bool, with_other: bool, dtype: torch.dtype
) -> None:
    x = random(seed, batch, prefix + present, 6, dtype=dtype)
    index = torch.randint(-1 if with_other else 0, present, (batch, 25), generator=torch.Generator().manual_seed(seed))
    whole = random(seed + 1, batch, prefix + 25, 6, dtype=dtype)
    other = whole[:, prefix:] if with_other else None
    assert torch.equal(
        native.put_back(x, index, other, prefix, with_prefix), reference(put_back)(x, index, other, prefix, with_prefix)
    )


def test_kernels_stand_aside_for_gradients_float64_and_transforms() -> None:
    score = torch.randn(2, 8)
    assert native.split_top(score, 3) is not NotImplemented
    assert native.split_top(score.double(), 3) is NotImplemented
    assert native.split_top(score.clone().requires_grad_(), 3) is NotImplemented
    assert native.split_top(torch.randn(8, 2).T, 3) is NotImplemented
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel under vmap runs image by image, and torch says so
        answer = torch.func.vmap(lambda row: split_top(row.unsqueeze(0), 3)[0].squeeze(0))(score)
    assert torch.equal(answer, split_top(score, 3)[0])
    with torch.no_grad():
        assert native.split_top(score.clone().requires_grad_(), 3) is not NotImplemented


def test_without_the_library_the_plain_operators_answer_and_say_so_once() -> None:
    code = (
        "import warnings, torch\n"
        "from pathlib import Path\n"
        "import tokensieve.ops.cpu as native\n"
        "native.library_path = lambda: Path('/nowhere.so')\n"
        "from tokensieve.ops.rows import split_top\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    answers = [split_top(torch.tensor([[1.0, 3.0, 2.0]]), 1)[0].tolist() for _ in range(3)]\n"
        "assert answers == [[[1]]] * 3, answers\n"
        "assert len(caught) == 1, caught\n"
        "print(caught[0].message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CPU kernels are not built" in done.stdout and "python -m tokensieve.ops.cpu" in done.stdout


def test_the_doors_use_the_kernels_and_not_while_exporting() -> None:
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch(), warnings.catch_warnings():
        warnings.simplefilter("error", TokensieveWarning)
        split_top(torch.randn(1, 5), 2)
    assert any("tokensieve.split_top" in call for call in calls)
    program = torch.export.export(Split(), (torch.randn(1, 5),))
    assert "tokensieve" not in str(program.graph)


class Split(torch.nn.Module):
    def forward(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return split_top(score, 2)
