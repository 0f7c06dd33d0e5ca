"""Every Triton kernel against the plain torch function it stands in for: random shapes, dtypes, strides and ties."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokensieve as ts
from tokensieve.attention.selector import Selector, selected_columns
from tokensieve.attention.signals import Attended, class_attention, column_sums
from tokensieve.ops import cpu as native
from tokensieve.ops import cuda as gpu
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, lead_pairs, similarity, unit_rows
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top
from tokensieve.tokens.decision import Assignment
from tokensieve.tokens.move import move_tokens, put_back

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from(DTYPES)
# The fixture that lets kernels take these tensors is the same for every example.
some = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reference(door: Callable[..., Any]) -> Callable[..., Any]:
    return door.__wrapped__  # type: ignore[attr-defined, no-any-return]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def attended(seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype, biased: bool) -> Attended:
    """Queries, keys and values laid out as timm's attention has them: views of one projection."""
    qkv = random(seed, batch, length, 3, heads, dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    bias = random(seed + 1, batch, 1, 1, length) if biased else None
    return Attended(qkv[0], qkv[1], qkv[2], dim**-0.5, bias)


def exact(given_to: Attended) -> Attended:
    tensors = (t.double() for t in (given_to.queries, given_to.keys, given_to.values))
    return Attended(*tensors, given_to.scale, given_to.bias)


def agree(answers: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for answer, want in zip(answers, wanted, strict=True):
        assert (answer is None) == (want is None)
        assert answer is None or (answer.dtype == want.dtype and torch.equal(answer, want))


@some
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 200),
    st.sampled_from([1, 8, 24, 64]),
    dtypes,
    st.booleans(),
)
def test_class_attention(
    seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype, biased: bool
) -> None:
    given_to = attended(seed, batch, heads, length, dim, dtype, biased)
    answer = gpu.class_attention(given_to)
    torch.testing.assert_close(answer.double(), reference(class_attention)(exact(given_to)), rtol=1e-4, atol=1e-6)


@some
@given(
    seeds,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 150),
    st.integers(1, 9),
    dtypes,
    st.booleans(),
    st.booleans(),
)
def test_column_sums(
    seed: int, batch: int, heads: int, length: int, stride: int, dtype: torch.dtype, biased: bool, voted: bool
) -> None:
    given_to = attended(seed, batch, heads, length, 24, dtype, biased)
    voters = random(seed + 2, batch, length) > -0.5 if voted else None
    answer = gpu.column_sums(given_to, voters, 8, stride)
    wanted = reference(column_sums)(exact(given_to), voters, 8, stride)
    torch.testing.assert_close(answer.double(), wanted, rtol=1e-4, atol=1e-5)


def test_padding_that_no_query_may_see_gets_exactly_nothing() -> None:
    given_to = attended(0, 2, 3, 140, 16, torch.float32, False)
    bias = torch.zeros(2, 1, 1, 140, device=DEVICE)
    bias[..., 100:] = -torch.inf
    bias[..., :3] = -torch.inf
    hidden = Attended(given_to.queries, given_to.keys, given_to.values, given_to.scale, bias)
    for answer in (gpu.class_attention(hidden), gpu.column_sums(hidden, None, 8, 1)):
        assert bool((answer[..., 100:] == 0).all()) and bool((answer[..., :3] == 0).all())
        assert bool((answer[..., 3:100] > 0).all())


def test_one_bias_may_serve_the_whole_batch() -> None:
    given_to = attended(3, 3, 2, 20, 16, torch.float32, True)
    assert given_to.bias is not None
    shared = Attended(given_to.queries, given_to.keys, given_to.values, given_to.scale, given_to.bias[:1])
    torch.testing.assert_close(gpu.class_attention(shared), reference(class_attention)(shared))
    torch.testing.assert_close(gpu.column_sums(shared, None, 8, 2), reference(column_sums)(shared, None, 8, 2))


@some
@given(
    seeds,
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 6, 12, 16]),
    st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
def test_selected_columns(
    seed: int, batch: int, heads: int, length: int, stride: int, biased: bool, logarithm: bool
) -> None:
    given_to = attended(seed, batch, heads, length, 8, torch.float32, biased)
    selector = selector_of(seed, heads)
    sum_of = "log_probabilities" if logarithm else "probabilities"
    with torch.no_grad():
        answer = gpu.selected_columns(selector, given_to, 8, stride, sum_of)
        wanted = reference(selected_columns)(selector, given_to, 8, stride, sum_of)
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-4)


def selector_of(seed: int, heads: int) -> Selector:
    torch.manual_seed(seed)
    selector = Selector(heads, scaled=bool(seed % 2))
    for parameter in selector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return selector.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_selected_columns_of_a_selector_in_half_precision(dtype: torch.dtype) -> None:
    given_to = attended(1, 2, 6, 33, 16, dtype, True)
    selector = selector_of(1, 6).to(dtype)
    with torch.no_grad():
        answer = gpu.selected_columns(selector, given_to, 8, 2, "probabilities")
        wanted = reference(selected_columns)(selector.double(), exact(given_to), 8, 2, "probabilities")
    torch.testing.assert_close(answer.double(), wanted, rtol=3e-2, atol=3e-3)


@some
@given(seeds, st.integers(1, 4), st.integers(1, 140), st.data(), dtypes)
def test_split_top_also_with_ties(seed: int, batch: int, length: int, data: st.DataObject, dtype: torch.dtype) -> None:
    score = (random(seed, batch, length) * 2).round().to(dtype)  # many equal values, both zeros among them
    count = data.draw(st.integers(0, length))
    agree(gpu.split_top(score, count), reference(split_top)(score, count))


def test_split_top_sorts_infinities_and_nan_as_torch_does() -> None:
    score = torch.tensor([[1.0, -torch.inf, torch.nan, torch.inf, 0.0, -0.0, -torch.nan]], device=DEVICE)
    for count in range(8):
        agree(gpu.split_top(score, count), reference(split_top)(score, count))


def test_split_top_of_a_transposed_score() -> None:
    score = random(0, 9, 3).T
    agree(gpu.split_top(score, 4), reference(split_top)(score, 4))


@some
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 30), st.integers(1, 40), dtypes)
def test_head_mean_and_unit_rows(seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype) -> None:
    features = random(seed, batch, length, heads, dim, dtype=dtype).transpose(1, 2)
    torch.testing.assert_close(gpu.head_mean(features), reference(head_mean)(features), rtol=1e-5, atol=1e-6)
    rows = features[:, 0]
    torch.testing.assert_close(gpu.unit_rows(rows), reference(unit_rows)(rows), rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_one() -> None:
    assert not bool(gpu.unit_rows(torch.zeros(1, 2, 5, device=DEVICE)).any())


@some
@given(seeds, st.integers(1, 3), st.integers(2, 150), st.integers(0, 1), st.data(), dtypes)
def test_bipartite_matching(
    seed: int, batch: int, length: int, first: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    remove = data.draw(st.integers(0, (length + 1 - first) // 2))
    metric = random(seed, batch, length, 12, dtype=dtype)
    agree(gpu.bipartite_matching(metric, remove, first), reference(bipartite_matching)(metric.double(), remove, first))


def test_bipartite_matching_shares_long_sides_among_programs() -> None:
    metric = random(5, 1, 300, 40)
    agree(gpu.bipartite_matching(metric, 90), reference(bipartite_matching)(metric.double(), 90))
    # Every token has its equals in all parts of the other side: the first of them wins.
    metric = torch.eye(5, device=DEVICE)[torch.arange(300, device=DEVICE) // 2 % 5].unsqueeze(0)
    agree(gpu.bipartite_matching(metric, 90), reference(bipartite_matching)(metric, 90))


def test_bipartite_matching_breaks_ties_by_index() -> None:
    metric = torch.eye(3, device=DEVICE)[torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1, 2, 0]], device=DEVICE)]
    for first in (0, 1):
        for remove in range(6):
            agree(gpu.bipartite_matching(metric, remove, first), reference(bipartite_matching)(metric, remove, first))


def test_bipartite_matching_takes_nan_for_the_best_match_as_torch_does() -> None:
    metric = random(0, 1, 12, 4)
    metric[:, 5] = torch.nan
    agree(gpu.bipartite_matching(metric, 3), reference(bipartite_matching)(metric, 3))


@pytest.mark.parametrize("alone", [True, False], ids=["one program", "one launch a round"])
@some
@given(seeds, st.integers(1, 3), st.integers(2, 60), st.integers(1, 6), st.booleans(), st.data())
def test_match_pairs(
    alone: bool, seed: int, batch: int, length: int, rounds: int, ties: bool, data: st.DataObject
) -> None:
    features = random(seed, batch, length, 6)
    similarities = similarity(features, features)
    if ties:
        similarities = (similarities * 3).round() / 3
    score = (random(seed + 1, batch, length) * 2).round()
    pairs = data.draw(st.integers(0, length // 2))
    from tokensieve.ops.cuda import pairs as in_triton  # needs triton

    with few_tokens_fit("pairs", alone):
        answer = in_triton.lead_pairs(similarities, score, pairs, rounds)
    agree(answer, lead_pairs(similarities, score, pairs, rounds))


def test_match_pairs_where_nothing_is_similar() -> None:
    """Edges of minus infinity are none: what is left pairs up by position."""
    from tokensieve.ops.cuda import pairs as in_triton

    similarities = torch.full((1, 7, 7), -torch.inf, device=DEVICE)
    similarities[:, 1, 4] = similarities[:, 4, 1] = 0.5
    score = random(0, 1, 7)
    for pairs in range(4):
        agree(in_triton.lead_pairs(similarities, score, pairs, 3), lead_pairs(similarities, score, pairs, 3))


@pytest.mark.parametrize("alone", [True, False], ids=["one program", "one launch a step"])
@some
@given(seeds, st.integers(1, 3), st.integers(1, 50), st.data())
def test_density_peaks(alone: bool, seed: int, batch: int, length: int, data: st.DataObject) -> None:
    features = random(seed, batch, length, 7)
    clusters = data.draw(st.integers(1, length))
    neighbours = data.draw(st.sampled_from([None, *range(1, min(length, 6))]))
    with few_tokens_fit("density", alone):
        answer = gpu.density_peaks(features, clusters, neighbours)
    agree(answer, reference(density_peaks)(features.double(), clusters, neighbours))


def few_tokens_fit(module: str, alone: bool) -> Any:
    """As many tokens as ever for one program, or so few that every step is a launch of its own."""
    import importlib

    kernels = importlib.import_module(f"tokensieve.ops.cuda.{module}")
    patch = pytest.MonkeyPatch.context()
    inner = patch.__enter__()
    inner.setattr(kernels, "ALONE", kernels.ALONE if alone else 0)

    class Undo:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None:
            patch.__exit__(None, None, None)

    return Undo()


def test_density_peaks_of_equal_tokens_prefers_the_lower_index() -> None:
    features = torch.ones(2, 9, 4, device=DEVICE)
    for neighbours in (None, 3):
        agree(gpu.density_peaks(features, 3, neighbours), reference(density_peaks)(features, 3, neighbours))


@some
@given(seeds, st.integers(1, 3), st.integers(2, 150), st.integers(0, 2), dtypes, st.data())
def test_move_tokens(seed: int, batch: int, length: int, prefix: int, dtype: torch.dtype, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, length))
    merging = data.draw(st.integers(0, length - kept))
    crowd = data.draw(st.integers(1, kept))  # few new tokens that many old ones join, or many
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1).to(DEVICE)
    weighted, sized = data.draw(st.booleans()), data.draw(st.booleans())
    assignment = Assignment(
        keep=order[:, :kept],
        moved=order[:, kept : kept + merging] if merging else None,
        onto=torch.randint(crowd, (batch, merging), generator=generator).to(DEVICE) if merging else None,
        dropped=order[:, kept + merging :] if kept + merging < length else None,
        weight=torch.rand(batch, length, generator=generator).to(DEVICE) if weighted else None,
        reduce=data.draw(st.sampled_from(["mean", "sum"])),
    )
    x = random(seed, batch, prefix + length, 20, dtype=dtype)
    group = torch.randint(-1, length, (batch, length + 4), generator=generator).to(DEVICE)
    rep = torch.arange(length, device=DEVICE).expand(batch, -1)
    size = torch.randint(1, 5, (batch, length), generator=generator).float().to(DEVICE) if sized else None
    bias = random(seed + 2, 20, dtype=dtype) if data.draw(st.booleans()) else None
    norm = Norm(random(seed + 1, 20, dtype=dtype), bias, 1e-5) if data.draw(st.booleans()) else None
    answer = gpu.move_tokens(x, group, rep, size, assignment, norm)
    wanted = reference(move_tokens)(x.double(), group, rep, size, assignment)
    assert (answer[5] is None) == (norm is None)
    if norm is not None:
        exact = Norm(norm.weight.double(), None if bias is None else bias.double(), norm.eps)(answer[0].double())
        near = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(answer[5].double(), exact, **near)
    close = {"rtol": 2e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(answer[0].double(), wanted[0], **close)
    assert answer[0].dtype == dtype
    agree((answer[1], answer[2], answer[4]), (wanted[1], wanted[2], wanted[4]))
    assert (answer[3] is None) == (wanted[3] is None)
    if answer[3] is not None:
        torch.testing.assert_close(answer[3], wanted[3].float())
    alone = torch.ones(batch, kept, dtype=torch.bool, device=DEVICE)
    if assignment.onto is not None:
        alone = alone.scatter(1, assignment.onto, False)
    untouched = x[:, prefix:].gather(1, assignment.keep.unsqueeze(2).expand(-1, -1, 20))
    assert torch.equal(answer[0][:, prefix:][alone], untouched[alone])
    assert torch.equal(answer[0][:, :prefix], x[:, :prefix])


def test_move_tokens_of_more_channels_than_a_program_holds() -> None:
    x = random(0, 1, 7, 1100)
    rep = torch.arange(6, device=DEVICE).unsqueeze(0)
    index = {
        name: torch.tensor([places], device=DEVICE) for name, places in (("keep", [4, 0, 1]), ("moved", [2, 3, 5]))
    }
    assignment = Assignment(**index, onto=torch.tensor([[2, 0, 2]], device=DEVICE))
    norm = Norm(random(1, 1100), None, 1e-6)
    answer, wanted = (move(x, rep, rep, None, assignment, norm) for move in (gpu.move_tokens, reference(move_tokens)))
    torch.testing.assert_close(answer[0], wanted[0])
    torch.testing.assert_close(answer[5], wanted[5])
    agree(answer[1:5], wanted[1:5])


def test_weights_that_vanish_leave_the_leader_as_it_is() -> None:
    x = random(0, 1, 4, 16)
    rep = torch.arange(4, device=DEVICE).unsqueeze(0)
    assignment = Assignment(
        keep=torch.tensor([[0, 2]], device=DEVICE),
        moved=torch.tensor([[1, 3]], device=DEVICE),
        onto=torch.tensor([[1, 1]], device=DEVICE),
        weight=torch.zeros(1, 4, device=DEVICE),
    )
    answer = gpu.move_tokens(x, rep, rep, None, assignment)
    assert torch.equal(answer[0], x[:, ::2])
    assert answer[3].tolist() == [[1.0, 3.0]]


def test_indices_of_tokens_that_are_not_there_touch_nothing() -> None:
    x = random(0, 1, 4, 16)
    rep = torch.arange(4, device=DEVICE).unsqueeze(0)
    wrong = Assignment(
        keep=torch.tensor([[0, 99]], device=DEVICE),
        moved=torch.tensor([[-7, 1]], device=DEVICE),
        onto=torch.tensor([[0, 55]], device=DEVICE),
    )
    moved = gpu.move_tokens(x, rep, rep, None, wrong)
    assert torch.equal(moved[0][:, 0], x[:, 0]) and not bool(moved[0][:, 1].any())
    back = gpu.put_back(x, torch.tensor([[2, 77]], device=DEVICE), None, 0, False)
    assert torch.equal(back[:, 0], x[:, 2]) and not bool(back[:, 1].any())


@some
@given(seeds, st.integers(1, 3), st.integers(1, 20), st.integers(0, 2), st.booleans(), st.booleans(), dtypes)
def test_put_back(
    seed: int, batch: int, present: int, prefix: int, with_prefix: bool, with_other: bool, dtype: torch.dtype
) -> None:
    x = random(seed, batch, prefix + present, 6, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(-1 if with_other else 0, present, (batch, 25), generator=generator).to(DEVICE)
    whole = random(seed + 1, batch, prefix + 25, 6, dtype=dtype)
    other = whole[:, prefix:] if with_other else None
    agree(
        (gpu.put_back(x, index, other, prefix, with_prefix),),
        (reference(put_back)(x, index, other, prefix, with_prefix),),
    )


def test_the_same_input_gives_the_same_bits_every_time() -> None:
    given_to = attended(0, 2, 4, 90, 32, torch.float32, True)
    metric = random(1, 2, 90, 32)
    first = (gpu.class_attention(given_to), gpu.column_sums(given_to, None, 8, 1), gpu.unit_rows(metric))
    second = (gpu.class_attention(given_to), gpu.column_sums(given_to, None, 8, 1), gpu.unit_rows(metric))
    agree(first, second)


@pytest.mark.parametrize("methods", ["bat", "bat-paper", "tome:r=4", "evit", "tosa", "tosa:score=own"])
def test_models_answer_the_same_with_and_without_kernels(methods: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 80), depth=4, embed_dim=48, num_heads=3, num_classes=10, init_values=0.1
    )
    model, x = ts.apply(model.eval().to(DEVICE), methods), random(0, 2, 3, 64, 80)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)
        answer = model(x)
        monkeypatch.setattr(gpu, "available", lambda: False)
        torch.testing.assert_close(answer, model(x), rtol=1e-4, atol=1e-5)
