"""Every kernel against the plain body of its operator: random shapes, dtypes, strides and ties, on each backend."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tokensieve as ts
from tests.helpers.kernels import (
    BACKENDS,
    CASES,
    INTERPRETED,
    Backend,
    Case,
    agree,
    attention,
    dtypes,
    each_backend,
    exactly,
    flat,
    integers,
    moving,
    random,
    seeds,
    some,
)
from tokensieve.attention.kernel import attend
from tokensieve.ops.attention import class_attention, column_sums
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, match_halves
from tokensieve.ops.moving import move_tokens, put_back
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top, unit_rows
from tokensieve.tokens.decision import Assignment, ragged_merge

HERE = [(case, backend) for case in CASES for backend in BACKENDS if backend.name in case.backends]


def copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(map(copies, value)) if type(value) is tuple else value


@pytest.mark.parametrize(
    ("case", "backend"), HERE, ids=[f"{case.operator.__name__}-{backend.name}" for case, backend in HERE]
)
@some
@given(data=st.data())
def test_a_kernel_answers_what_the_plain_body_defines(case: Case, backend: Backend, data: st.DataObject) -> None:
    arguments = case.arguments(data.draw, backend.device)
    before = copies(arguments)
    answer = backend.run(case.operator, *arguments)
    for one, other in zip(arguments, before, strict=True):
        assert not isinstance(one, Tensor) or torch.equal(one, other), "a kernel has changed what it was given"
    wanted = case.operator.__wrapped__(*(exactly(arguments) if case.exact else arguments))
    if case.close is None:
        agree(answer, wanted)
        return
    for one, other in zip(flat(answer), flat(wanted), strict=True):
        assert one.dtype == (torch.float32 if case.exact else other.dtype)
        torch.testing.assert_close(one.to(other.dtype), other, **case.close)


def test_every_operator_with_a_kernel_has_a_case() -> None:
    for name in ts.list_methods():
        ts.parse(name)
    operators = {
        id(value): value
        for name, module in list(sys.modules.items())
        if name.startswith("tokensieve")
        for value in vars(module).values()
        if hasattr(value, "on_cpu") and hasattr(value, "__wrapped__")
    }
    listed = {(case.operator.__name__, name) for case in CASES for name in case.backends}
    # Those have tests of their own: move_tokens below, attend in tests/attention, Triton's pairs in tests/ops/cuda.
    listed |= {("move_tokens", "cpu"), ("move_tokens", "cuda"), ("attend", "cpu"), ("match_pairs", "cuda")}
    found = {
        (operator.__name__, name)
        for operator in operators.values()
        for name in ("cpu", "cuda")
        if getattr(operator, name) is not None
    }
    assert found == listed and attend.cpu is not None


@each_backend
def test_padding_that_no_query_may_see_gets_exactly_nothing(backend: Backend) -> None:
    queries, keys, scale, _ = attention(0, 2, 3, 140, 16, torch.float32, False, backend.device)
    bias = torch.zeros(2, 1, 1, 140, device=backend.device)
    bias[..., 100:] = -torch.inf
    bias[..., :3] = -torch.inf
    hidden = (queries, keys, scale, bias)
    for answer in (backend.run(class_attention, *hidden), backend.run(column_sums, *hidden, None, 8, 1)):
        assert bool((answer[..., 100:] == 0).all()) and bool((answer[..., :3] == 0).all())
        assert bool((answer[..., 3:100] > 0).all())


@each_backend
def test_one_bias_may_serve_the_whole_batch(backend: Backend) -> None:
    queries, keys, scale, bias = attention(3, 3, 2, 20, 16, torch.float32, True, backend.device)
    assert bias is not None
    shared = (queries, keys, scale, bias[:1])
    torch.testing.assert_close(backend.run(class_attention, *shared), class_attention.__wrapped__(*shared))
    sums = backend.run(column_sums, *shared, None, 8, 2)
    torch.testing.assert_close(sums, column_sums.__wrapped__(*shared, None, 8, 2))


@each_backend
def test_split_top_sorts_infinities_and_nan_as_torch_does(backend: Backend) -> None:
    score = torch.tensor([[1.0, -torch.inf, torch.nan, torch.inf, 0.0, -0.0, -torch.nan]], device=backend.device)
    for count in range(8):
        agree(backend.run(split_top, score, count), split_top.__wrapped__(score, count))


@each_backend
def test_a_row_of_zeros_stays_one(backend: Backend) -> None:
    assert not bool(backend.run(unit_rows, torch.zeros(1, 2, 5, device=backend.device)).any())


@each_backend
def test_bipartite_matching_breaks_ties_by_index(backend: Backend) -> None:
    metric = torch.eye(3)[torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1, 2, 0]])].to(backend.device)
    for first in (0, 1):
        for remove in range(6):
            answer = backend.run(bipartite_matching, metric, remove, first)
            agree(answer, bipartite_matching.__wrapped__(metric, remove, first))


@pytest.mark.skipif(INTERPRETED, reason="the kernel is one of the CPU's")
def test_match_halves_is_bipartite_matching_of_the_mean_over_heads() -> None:
    keys = random(0, 2, 31, 3, 16).transpose(1, 2)
    agree(match_halves.cpu(keys, 9, 1), bipartite_matching(head_mean(keys), 9, 1))


@each_backend
def test_density_peaks_of_equal_tokens_prefers_the_lower_index(backend: Backend) -> None:
    features = torch.ones(2, 9, 4, device=backend.device)
    for neighbours in (None, 3):
        answer = backend.run(density_peaks, features, 3, neighbours)
        agree(answer, density_peaks.__wrapped__(features, 3, neighbours))


def orders(seed: int, batch: int, length: int, device: str) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)).argsort(dim=1).to(device)


def assigned(data: st.DataObject, seed: int, batch: int, length: int, device: str) -> Assignment:
    """Tokens that stay, merge (into few new ones or into many), and leave; some by an ``onto`` of -1."""
    kept = data.draw(st.integers(1, length))
    merging = data.draw(st.integers(0, length - kept))
    crowd, least = data.draw(st.integers(1, kept)), data.draw(st.integers(-1, 0))
    order = orders(seed, batch, length, device)
    weighted, named = data.draw(st.booleans()), data.draw(st.booleans())
    leaves = order[:, kept + merging :]
    return Assignment(
        keep=order[:, :kept],
        moved=order[:, kept : kept + merging] if merging else None,
        onto=integers(seed + 1, least, crowd, batch, merging, device=device) if merging else None,
        dropped=leaves if named or leaves.shape[1] else None,
        weight=random(seed + 2, batch, length, device=device).abs() if weighted else None,
        reduce=data.draw(st.sampled_from(["mean", "sum"])),
    )


def moved_as_wanted(backend: Backend, answer: Any, wanted: Any, dtype: torch.dtype) -> None:
    """The tokens, what they stand for, and where the old ones went; ``wanted`` is the plain body's in float64."""
    assert answer[0].dtype == dtype
    small = 1e-6 if backend.name == "cpu" else 1e-5
    close = {"rtol": 2e-5, "atol": small} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(answer[0].double(), wanted[0], **close)
    agree((answer[1], answer[2], answer[4]), (wanted[1], wanted[2], wanted[4]))
    assert (answer[3] is None) == (wanted[3] is None)
    if answer[3] is not None:
        torch.testing.assert_close(answer[3], wanted[3].float())


@each_backend
@some
@given(seeds, st.integers(1, 3), st.integers(2, 150), st.integers(0, 2), dtypes, st.data())
def test_move_tokens(
    backend: Backend, seed: int, batch: int, length: int, prefix: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    on, channels = backend.device, data.draw(st.sampled_from([5, 20]))
    assignment = assigned(data, seed, batch, length, on)
    x = random(seed, batch, prefix + length, channels, dtype=dtype, device=on)
    group = integers(seed, -1, length, batch, length + 4, device=on)
    rep = torch.arange(length, device=on).expand(batch, -1)
    size = integers(seed, 1, 5, batch, length, device=on).float() if data.draw(st.booleans()) else None
    bias = random(seed + 2, channels, dtype=dtype, device=on) if data.draw(st.booleans()) else None
    norm = Norm(random(seed + 1, channels, dtype=dtype, device=on), bias, 1e-5) if data.draw(st.booleans()) else None
    arguments = moving(x, group, rep, size, assignment, norm)
    answer = backend.run(move_tokens, *arguments)
    moved_as_wanted(backend, answer, move_tokens.__wrapped__(*exactly(arguments)), dtype)
    assert (answer[5] is None) == (norm is None)
    if norm is not None:
        near = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(answer[5].double(), exactly(norm)(answer[0].double()), **near)
        if backend.name == "cpu":
            agree(answer[5], norm(answer[0]))
    kept = assignment.keep.shape[1]
    alone = torch.ones(batch, kept, dtype=torch.bool, device=on)
    if assignment.onto is not None:
        alone = torch.nn.functional.one_hot(assignment.onto + 1, kept + 1).sum(dim=1)[:, 1:] == 0
    untouched = x[:, prefix:].gather(1, assignment.keep.unsqueeze(2).expand(-1, -1, channels))
    assert torch.equal(answer[0][:, prefix:][alone], untouched[alone])
    assert torch.equal(answer[0][:, :prefix], x[:, :prefix])


@pytest.mark.skipif(INTERPRETED, reason="Triton's kernel stands aside for padding")
@some
@given(seeds, st.integers(1, 3), st.integers(2, 30), st.integers(0, 2), dtypes, st.data())
def test_move_tokens_of_unequal_numbers(
    seed: int, batch: int, length: int, prefix: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Slots of padding: what their old tokens join, those that join nothing, and merges beside them."""
    kept = data.draw(st.integers(1, length))
    merging = data.draw(st.integers(0, length - kept))
    generator = torch.Generator().manual_seed(seed)
    order = orders(seed, batch, length, "cpu")
    alive = torch.rand(batch, kept, generator=generator) < data.draw(st.sampled_from([0.2, 0.7, 1.0]))
    onto = integers(seed, -1, kept, batch, merging + kept)
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
    group = integers(seed + 1, -1, length, batch, length + 4)
    rep = torch.arange(length).expand(batch, -1)
    size = integers(seed + 2, 1, 5, batch, length).float() if sized else None
    arguments = moving(x, group, rep, size, assignment)
    answer = move_tokens.cpu(*arguments)
    # In float32 and rounded once, as the kernel adds: the plain body rounds every step in half precision.
    wanted = move_tokens.__wrapped__(x.float(), *arguments[1:])
    close = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 4e-2, "atol": 4e-3}
    torch.testing.assert_close(answer[0], wanted[0].to(dtype), **close)
    agree((answer[1], answer[2], answer[4]), (wanted[1], wanted[2], wanted[4]))
    assert (answer[3] is None) == (wanted[3] is None)
    if answer[3] is not None:
        torch.testing.assert_close(answer[3], wanted[3])


@pytest.mark.skipif(INTERPRETED, reason="Triton's kernel stands aside for padding")
@some
@given(seeds, st.integers(2, 4), st.integers(2, 30), st.integers(0, 1), st.booleans())
def test_ragged_merges_by_kernel_and_by_plain_body(
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
    arguments = moving(x, rep, rep, size, assignment)
    answer, wanted = move_tokens.cpu(*arguments), move_tokens.__wrapped__(*arguments)
    left = torch.ones_like(wanted[3], dtype=torch.bool) if assignment.alive is None else assignment.alive
    if assignment.alive is None and alive is not None:
        left = alive.gather(1, assignment.keep)
    torch.testing.assert_close(answer[0][:, prefix:][left], wanted[0][:, prefix:][left], rtol=2e-5, atol=1e-6)
    assert torch.equal(answer[0][:, :prefix], x[:, :prefix])
    assert answer[0].isfinite().all()
    assert torch.equal(answer[4], wanted[4]) and torch.equal(answer[2], wanted[2])
    torch.testing.assert_close(answer[3][left], wanted[3][left])
    assert float(answer[3][left].sum()) == float(size.sum())


@each_backend
def test_weights_that_vanish_leave_the_leader_as_it_is(backend: Backend) -> None:
    x = random(0, 1, 4, 16, device=backend.device)
    rep = torch.arange(4, device=backend.device).unsqueeze(0)
    assignment = Assignment(
        keep=torch.tensor([[0, 2]], device=backend.device),
        moved=torch.tensor([[1, 3]], device=backend.device),
        onto=torch.tensor([[1, 1]], device=backend.device),
        weight=torch.zeros(1, 4, device=backend.device),
    )
    answer = backend.run(move_tokens, *moving(x, rep, rep, None, assignment))
    assert torch.equal(answer[0], x[:, ::2])
    assert answer[3].tolist() == [[1.0, 3.0]]


@each_backend
def test_the_same_input_gives_the_same_bits_every_time(backend: Backend) -> None:
    given_to = attention(0, 2, 4, 90, 32, torch.float32, True, backend.device)
    metric = random(1, 2, 90, 32, device=backend.device)
    first, second = (
        (
            backend.run(class_attention, *given_to),
            backend.run(column_sums, *given_to, None, 8, 1),
            backend.run(unit_rows, metric),
        )
        for _ in range(2)
    )
    agree(first, second)


@pytest.mark.skipif(INTERPRETED, reason="Triton's kernels leave them out")
def test_an_assignment_that_names_no_token_is_refused_and_reads_no_memory() -> None:
    x = torch.randn(1, 4, 3)
    rep = torch.arange(4).unsqueeze(0)
    with pytest.raises(RuntimeError, match="names a token that is not there"):
        move_tokens.cpu(*moving(x, rep, rep, None, Assignment(keep=torch.tensor([[0, 9]]))))
    with pytest.raises(RuntimeError, match="names a token that is not there"):
        put_back.cpu(x, torch.tensor([[7]]), None, 0, False)
