"""Merges that take, channel by channel, the value of the member that is largest in magnitude."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.ops.norm import Norm
from tokensieve.tokens.algebra import apply
from tokensieve.tokens.decision import Assignment, averaging, check, ragged_merge
from tokensieve.tokens.state import Tokens


def merged(x: Tensor, joins: list[int], prefix: int = 0) -> Tokens:
    """The state in which every patch token of ``x`` (B, P + M, C) has joined the one whose number ``joins`` has."""
    numbers = sorted(set(joins))
    index = torch.tensor([numbers.index(join) for join in joins]).expand(x.shape[0], -1)
    plain = Assignment.from_index(index, len(numbers))
    assignment = Assignment(keep=plain.keep, moved=plain.moved, onto=plain.onto, reduce="larger")
    assert check(assignment, len(joins)) is None
    return apply(Tokens.start(x, prefix), assignment)


def test_three_tokens_by_hand() -> None:
    x = torch.tensor([[[9.0, 9.0], [1.0, -2.0], [-3.0, 1.0], [2.0, 2.0], [0.5, -0.5]]])
    after = merged(x, [0, 0, 0, 3], prefix=1)
    assert after.patches.tolist() == [[[-3.0, 2.0], [0.5, -0.5]]]  # of -2 and 2 the positive one
    assert after.x[:, 0].tolist() == [[9.0, 9.0]]
    assert after.sizes.tolist() == [[3.0, 1.0]] and after.rep.tolist() == [[0, 3]]
    assert after.restore()[0, 1:].tolist() == [[-3.0, 2.0]] * 3 + [[0.5, -0.5]]


@st.composite
def groups(draw: st.DrawFn) -> list[int]:
    """The number of the group of each token."""
    return draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))


@settings(deadline=None, max_examples=80)
@given(
    joins=groups(), values=st.data(), prefix=st.integers(0, 2), dtype=st.sampled_from([torch.float32, torch.float16])
)
def test_any_groups_against_plain_loops(
    joins: list[int], values: st.DataObject, prefix: int, dtype: torch.dtype
) -> None:
    length, numbers = prefix + len(joins), sorted(set(joins))
    few = st.lists(st.integers(-3, 3), min_size=2 * 3 * length, max_size=2 * 3 * length)  # so that many are equal
    x = torch.tensor(values.draw(few)).view(2, length, 3).to(dtype) / 4
    after = merged(x, joins, prefix)
    assert after.x.dtype == dtype and torch.equal(after.x[:, :prefix], x[:, :prefix])
    for image in range(2):
        for place, number in enumerate(numbers):
            members = [x[image, prefix + i] for i, join in enumerate(joins) if join == number]
            wanted = [max((float(m[c]) for m in members), key=lambda v: (abs(v), v)) for c in range(3)]
            assert after.patches[image, place].tolist() == wanted
            assert after.sizes[image, place] == len(members)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_two_merges_are_one_of_both(seed: int) -> None:
    x = torch.randint(-3, 4, (1, 8, 4), generator=torch.Generator().manual_seed(seed)).double()
    first = merged(x, [0, 0, 2, 2, 4, 4, 6, 6])
    second = Assignment(
        keep=torch.tensor([[0, 2]]), moved=torch.tensor([[3, 1]]), onto=torch.tensor([[1, 0]]), reduce="larger"
    )
    assert torch.equal(apply(first, second).x, merged(x, [0, 0, 0, 0, 4, 4, 4, 4]).x)


def test_nothing_that_joins_changes_no_bit() -> None:
    x = torch.randn(2, 4, 3).bfloat16()
    assert torch.equal(merged(x, [0, 1, 2, 3]).x, x)


def test_tokens_that_leave_join_nothing() -> None:
    x = torch.tensor([[[1.0], [-7.0], [-2.0], [5.0]]])
    assignment = Assignment(
        keep=torch.tensor([[0]]),
        moved=torch.tensor([[1, 2]]),
        onto=torch.tensor([[-1, 0]]),
        dropped=torch.tensor([[3]]),
        reduce="larger",
    )
    assert check(assignment, 4) is None
    after = apply(Tokens.start(x, 0), assignment)
    assert after.x.tolist() == [[[-2.0]]] and after.sizes.tolist() == [[2.0]]
    assert after.restore().tolist() == [[[-2.0], [-7.0], [-2.0], [5.0]]]


def test_images_that_merge_different_numbers() -> None:
    x = torch.tensor([[[1.0], [-4.0], [2.0]], [[1.0], [3.0], [-2.0]]])
    plain = ragged_merge(torch.tensor([[0, 0, 0], [0, 1, 1]]))
    fields = {name: getattr(plain, name) for name in ("keep", "moved", "onto", "dropped", "alive", "padding_onto")}
    after = apply(Tokens.start(x, 0), Assignment(**fields, reduce="larger"))
    assert after.alive is not None and after.alive.tolist() == [[True, False], [True, True]]
    assert after.restore().tolist() == [[[-4.0]] * 3, [[1.0], [3.0], [3.0]]]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_stays_none(place: int) -> None:
    x = torch.tensor([[[1.0], [-7.0], [2.0]]])
    x[0, place] = math.nan
    assert merged(x, [0, 0, 0]).x.isnan().all()


def test_the_gradient_is_that_of_the_value_taken() -> None:
    x = torch.tensor([[[1.0, 4.0], [-3.0, 2.0], [5.0, 5.0], [5.0, -5.0]]], requires_grad=True)
    weight = torch.tensor([[[1.0, 10.0], [100.0, 1000.0]]])
    (merged(x, [0, 0, 2, 2]).x * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0, 10.0], [1.0, 0.0], [50.0, 1000.0], [50.0, 0.0]]]  # two equal values share


def test_the_gradient_by_differences() -> None:
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: merged(x, [0, 0, 2, 0, 2, 5], prefix=0).x, (x,))


def test_the_norm_that_reads_it_next_sees_these_values() -> None:
    x, layer = torch.randn(1, 5, 8), torch.nn.LayerNorm(8)
    torch.nn.init.normal_(layer.weight)
    assignment = Assignment(
        keep=torch.tensor([[0, 2]]), moved=torch.tensor([[1, 3]]), onto=torch.tensor([[0, 1]]), reduce="larger"
    )
    after = apply(Tokens.start(x, 1), assignment, norm=Norm(layer.weight, layer.bias, layer.eps))
    assert after.normed is not None
    torch.testing.assert_close(after.normed, layer(after.x))


@pytest.mark.parametrize("of_what", ["weight", "spread"])
def test_what_says_how_much_each_member_weighs_is_refused(of_what: str) -> None:
    given = {"weight": torch.ones(1, 3), "spread": torch.ones(1, 2, 1)}[of_what]
    keep, last = torch.tensor([[0, 1]]), torch.tensor([[2]])
    assignment = Assignment(keep=keep, dropped=last, reduce="larger", **{of_what: given})
    assert "leave weight and spread out" in str(check(assignment, 3))
    with pytest.raises(TokensieveError, match="leave weight and spread out"):
        apply(Tokens.start(torch.randn(1, 3, 2), 0), assignment)


def test_values_that_only_average_follow_as_a_mean() -> None:
    assignment = Assignment(keep=torch.tensor([[0]]), reduce="larger")
    found = averaging(assignment)
    assert isinstance(found, Assignment) and found.reduce == "mean"
