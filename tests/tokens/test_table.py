"""What tokens carry beside their features follows every kind of decision, held to a loop over the members."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.ops.rows import complement
from tokensieve.tokens.algebra import apply
from tokensieve.tokens.decision import Assignment, Decision, KeepMask, keep_only, ragged_merge
from tokensieve.tokens.follow import Joins, follow
from tokensieve.tokens.hide import hide
from tokensieve.tokens.node import register
from tokensieve.tokens.restore import returning
from tokensieve.tokens.rider import Moment, Rider
from tokensieve.tokens.soft import Blend, Mixing, SoftAssignment
from tokensieve.tokens.state import Tokens
from tokensieve.tokens.table import Extra

BATCH, LENGTH = 2, 7
JOINS: tuple[Joins, ...] = ("lead", "sum", "mean", "max")
Case = tuple[Joins, int]


def state(joins: Joins = "max", prefix: int = 1, depth: int = 0) -> Tokens:
    """Tokens with a value "heat" beside each."""
    shape = (BATCH, LENGTH, depth) if depth else (BATCH, LENGTH)
    heat = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    return Tokens.start(torch.randn(BATCH, prefix + LENGTH, 3), prefix).with_extra("heat", Extra(heat, joins))


def members_of(decision: Assignment, image: int) -> list[list[int]]:
    """The old tokens that each new one is made of, its leader first."""
    groups = [[int(token)] for token in decision.keep[image]]
    if decision.joining is not None:
        for token, place in zip(*(part[image].tolist() for part in decision.joining), strict=True):
            if place >= 0:
                groups[place].append(token)
    return groups


def joined(values: Tensor, joins: Joins) -> Tensor:
    """The members' values (K, …), leader first, as one."""
    if joins == "lead":
        return values[0]
    return {"sum": values.sum(0), "mean": values.mean(0), "max": values.amax(0)}[joins]


def looped(values: Tensor, decision: Assignment, joins: Joins) -> Tensor:
    images = []
    for image in range(values.shape[0]):
        groups = members_of(decision, image)
        images.append(torch.stack([joined(values[image, group], joins) for group in groups]))
    return torch.stack(images)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(JOINS), st.sampled_from([0, 2]), st.integers(1, LENGTH - 1), st.integers(0, 99))
def test_a_merge_joins_values_as_they_say(joins: Joins, depth: int, left: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)])
    onto = torch.randint(0, left, (BATCH, LENGTH - left), generator=generator)
    decision = Assignment(keep=order[:, :left], moved=order[:, left:], onto=onto)
    tokens = state(joins, depth=depth)
    before, after = tokens.extra("heat"), apply(tokens, decision).extra("heat")
    assert before is not None and after is not None
    torch.testing.assert_close(after, looped(before, decision, joins))


def test_whole_numbers_and_flags_keep_their_type() -> None:
    decision = Assignment(keep=torch.tensor([[0, 2]]), moved=torch.tensor([[1]]), onto=torch.tensor([[0]]))
    assert follow(torch.tensor([[3, 9, 4]]), decision, "max").tolist() == [[9, 4]]
    assert follow(torch.tensor([[False, True, False]]), decision, "lead").tolist() == [[False, False]]


def test_images_that_merge_different_numbers_leave_padding_out() -> None:
    joins = torch.tensor([[0, 0, 0, 3], [0, 1, 2, 3]])
    tokens = Tokens.start(torch.randn(2, 4, 3), 0).with_extra("heat", Extra(torch.tensor([[1.0, 5, 2, 3]] * 2), "max"))
    after = apply(tokens, ragged_merge(joins))
    assert after.alive is not None and after.alive.sum(dim=1).tolist() == [2, 4]
    heat = after.extra("heat")
    assert heat is not None and heat[0, :2].tolist() == [5, 3] and heat[1].tolist() == [1, 5, 2, 3]


@pytest.mark.parametrize("joins", JOINS)
def test_tokens_that_sit_out_return_with_what_they_had(joins: Joins) -> None:
    tokens = state(joins)
    keep = torch.tensor([[1, 3, 4]] * BATCH)
    short = apply(tokens, keep_only(keep, LENGTH, until="block"), block=2)
    hotter = short.with_extra("heat", Extra(torch.full((BATCH, 3), 9.0), joins))
    heat, before = returning(hotter, 3).extra("heat"), tokens.extra("heat")
    assert heat is not None and before is not None
    assert torch.equal(heat.gather(1, keep), torch.full((BATCH, 3), 9.0))
    away = complement(keep, LENGTH)
    assert torch.equal(heat.gather(1, away), before.gather(1, away))


def test_they_return_in_order_where_others_merged_meanwhile() -> None:
    tokens = state("max")
    short = apply(tokens, keep_only(torch.tensor([[1, 3, 4, 6]] * BATCH), LENGTH, until="block"), block=2)
    merge = Assignment.from_index(torch.tensor([[0, 0, 1, 2]] * BATCH), count=3)
    back = returning(apply(short, merge, block=2), 3)
    heat, before = back.extra("heat"), tokens.extra("heat")
    assert heat is not None and before is not None
    assert back.rep.tolist() == [[0, 1, 2, 4, 5, 6]] * BATCH
    wanted = before[:, [0, 1, 2, 4, 5, 6]].clone()
    wanted[:, 1] = before[:, [1, 3]].amax(dim=1)
    assert torch.equal(heat, wanted)


def test_tokens_that_were_away_when_a_value_came_have_what_is_neutral() -> None:
    short = apply(Tokens.start(torch.randn(1, 4, 3), 0), keep_only(torch.tensor([[1, 2]]), 4, until="block"), block=2)
    for joins, neutral in (("max", -torch.inf), ("sum", 0.0), ("mean", 0.0)):
        back = returning(short.with_extra("heat", Extra(torch.tensor([[-3.0, -4.0]]), joins)), 3)  # type: ignore[arg-type]
        heat = back.extra("heat")
        assert heat is not None and heat.tolist() == [[neutral, -3.0, -4.0, neutral]]


def test_the_lowest_value_stays_itself_in_a_maximum() -> None:
    decision = Assignment.from_index(torch.tensor([[0, 0]]), count=1)
    assert follow(torch.tensor([[-torch.inf, -torch.inf]]), decision, "max").tolist() == [[-torch.inf]]
    assert follow(torch.tensor([[False, True]]), decision, "max").tolist() == [[True]]


def test_hidden_tokens_keep_theirs_out_of_sight() -> None:
    tokens = state("max")
    hidden = hide(tokens, keep_only(torch.tensor([[0, 2, 5]] * BATCH), LENGTH))
    before, heat = tokens.extra("heat"), hidden.extra("heat")
    assert before is not None and heat is not None
    assert torch.equal(heat[:, :3], before[:, [0, 2, 5]])


@dataclass(frozen=True)
class Halves(Mixing):
    """Two new tokens, each the mean of one half of four."""

    leaders: Tensor

    def mean(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (2, 2)).mean(dim=2)

    def share(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (2, 2)).sum(dim=2)


@pytest.mark.parametrize("sparse", [False, True])
def test_soft_assignments_mix_values_as_they_say(sparse: bool) -> None:
    values = torch.tensor([[1.0, 4.0, 2.0, 8.0]])
    leaders = torch.tensor([[1, 3]])
    matrix = torch.tensor([[[0.4, 0.6, 0, 0], [0, 0, 0.3, 0.7]]])
    back = Blend(torch.tensor([[[0], [0], [1], [1]]]), torch.ones(1, 4, 1))
    soft = SoftAssignment(matrix=Halves(leaders) if sparse else matrix, restore=back)
    mean = [[2.5, 5.0]] if sparse else [[0.4 + 2.4, 0.6 + 5.6]]
    assert follow(values, soft, "lead").tolist() == [[4, 8]]
    assert follow(values, soft, "max").tolist() == [[4, 8]]
    assert follow(values, soft, "sum").tolist() == [[5, 10]]
    torch.testing.assert_close(follow(values, soft, "mean"), torch.tensor(mean))


def test_prefix_tokens_may_carry_values_that_never_move() -> None:
    value = torch.arange(8.0).expand(BATCH, -1)
    tokens = Tokens.start(torch.randn(BATCH, 1 + LENGTH, 3), 1).with_extra("sum", Extra(value, "sum", prefix=1))
    after = apply(tokens, Assignment.from_index(torch.tensor([[0, 0, 1, 1, 1, 2, 2]] * BATCH), count=3))
    assert after.table.extras["sum"].value.tolist() == [[0, 3, 12, 13]] * BATCH


@dataclass(frozen=True)
class Witness(Rider):
    """Writes down what happens to it."""

    seen: tuple[str, ...] = ()
    leaves: bool = False

    def follow(self, decision: Decision, moment: Moment) -> Rider | None:
        return None if self.leaves else Witness((*self.seen, f"{type(decision).__name__} in {moment.block}"))

    def returned(self, block: int, after_attention: bool) -> Rider | None:
        return Witness((*self.seen, f"return before {block}"))

    def hide(self, assignment: Assignment, moment: Moment) -> Rider | None:
        return Witness((*self.seen, f"hide in {moment.block}"))


register(Witness, ())


def test_riders_hear_of_everything_and_may_leave() -> None:
    tokens = state().with_rider("witness", Witness()).with_rider("leaver", Witness(leaves=True))
    masked = apply(tokens, KeepMask(mask=torch.ones(BATCH, LENGTH)), block=0)
    assert list(masked.riders) == ["witness"]
    short = apply(masked, keep_only(torch.tensor([[1, 3]] * BATCH), LENGTH, until="block"), block=2)
    back = returning(returning(short, 2), 3)
    hidden = hide(back, keep_only(torch.tensor([[0]] * BATCH), LENGTH), block=4)
    witness = hidden.riders["witness"]
    assert isinstance(witness, Witness)
    assert witness.seen == ("KeepMask in 0", "Assignment in 2", "return before 3", "hide in 4")
    assert hidden.with_rider("witness", None).riders == {}
