"""The token algebra: whatever a sequence of decisions does, the bookkeeping holds and every original comes back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from tokensieve.ops.norm import Norm
from tokensieve.tokens.algebra import apply
from tokensieve.tokens.decision import Assignment, KeepMask, Until, check, keep_only, ragged, return_point, slots
from tokensieve.tokens.restore import restore, returning
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.tokens.state import Tokens

CHANNELS = 3


def start(batch: int, patches: int, prefix: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, prefix + patches, CHANNELS, generator=generator, dtype=torch.float64)
    return Tokens.start(x.to(dtype), prefix)


def permuted(batch: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])


def random_assignment(tokens: Tokens, keep: int, move: int, seed: int, until: Until, weighted: bool) -> Assignment:
    """``keep`` tokens stay, ``move`` of the others merge into them, the rest leave."""
    batch, count = tokens.x.shape[0], tokens.count
    generator = torch.Generator().manual_seed(seed)
    order = permuted(batch, count, seed)
    onto = torch.randint(keep, (batch, move), generator=generator)
    weight = torch.rand(batch, count, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    dropped = order[:, keep + move :] if keep + move < count else None
    assignment = Assignment(
        keep=order[:, :keep], moved=order[:, keep : keep + move], onto=onto, dropped=dropped, weight=weight, until=until
    )
    assert check(assignment, count) is None
    return assignment


def patch_values(tokens: Tokens) -> Tensor:
    return tokens.restore("last")[:, tokens.prefix :]


@st.composite
def decisions(draw: st.DrawFn) -> list[tuple[float, float, int, str, bool]]:
    """Shares that stay and merge, a seed, how those who leave do so, and whether merges are weighted."""
    kind = st.sampled_from(["end", "park", "none"])
    return draw(
        st.lists(st.tuples(st.floats(0.2, 1), st.floats(0, 1), st.integers(0, 10**6), kind, st.booleans()), max_size=5)
    )


@settings(deadline=None, max_examples=120)
@given(
    batch=st.integers(1, 3),
    patches=st.integers(1, 14),
    prefix=st.integers(0, 2),
    steps=decisions(),
    scale=st.floats(0.5, 2),
)
def test_any_sequence_of_hard_decisions(
    batch: int, patches: int, prefix: int, steps: list[tuple[float, float, int, str, bool]], scale: float
) -> None:
    """A model of the algebra in plain Python, kept beside it: values, members, the gone and the parked."""
    tokens = start(batch, patches, prefix, seed=patches)
    values = [[tokens.patches[b, i] for i in range(patches)] for b in range(batch)]
    members = [[{i} for i in range(patches)] for _ in range(batch)]
    lead = [list(range(patches)) for _ in range(batch)]
    away: list[dict[int, Tensor]] = [{} for _ in range(batch)]
    parked: list[int] = [0] * batch
    for share, merging, seed, kind, weighted in steps:
        count = tokens.count
        keep = max(1, round(share * count))
        move = count - keep if kind == "none" else int(merging * (count - keep))
        assignment = random_assignment(tokens, keep, move, seed, "end" if kind != "park" else 9, weighted)
        for b in range(batch):
            weight = assignment.weight[b] if assignment.weight is not None else [len(m) for m in members[b]]
            new_values, new_members, new_lead = [], [], []
            for place, leader in enumerate(assignment.keep[b].tolist()):
                joining = [
                    old
                    for old, onto in zip(assignment.moved[b].tolist(), assignment.onto[b].tolist(), strict=True)
                    if onto == place
                ]
                group = [leader, *joining]
                total = sum(float(weight[i]) for i in group)
                mixed = sum(float(weight[i]) / total * values[b][i] for i in group)
                new_values.append(mixed if joining else values[b][leader])
                new_members.append(set().union(*(members[b][i] for i in group)))
                new_lead.append(lead[b][leader])
            for old in [] if assignment.dropped is None else assignment.dropped[b].tolist():
                for original in members[b][old]:
                    away[b][original] = values[b][old]
                parked[b] += assignment.until != "end"
            values[b], members[b], lead[b] = new_values, new_members, new_lead
        tokens = apply(tokens, assignment)
        # A block in between changes every token that is present.
        tokens = replace(tokens, x=tokens.x * scale)
        values = [[v * scale for v in row] for row in values]

        assert tokens.count == keep
        for b in range(batch):
            assert tokens.rep[b].tolist() == lead[b]
            assert tokens.sizes[b].tolist() == [len(m) for m in members[b]]
            for original, place in enumerate(tokens.group[b].tolist()):
                assert (place < 0) == (original in away[b])
                assert place < 0 or original in members[b][place]
            assert tokens.sizes[b].sum() == patches - len(away[b])
            assert all(tokens.group[b, leader] == place for place, leader in enumerate(lead[b]))
    whole = tokens.restore("last")
    assert whole.shape == tokens.shape == (batch, prefix + patches, CHANNELS)
    assert torch.equal(whole[:, :prefix], tokens.x[:, :prefix])
    for b in range(batch):
        for place, group in enumerate(members[b]):
            for original in group:
                torch.testing.assert_close(whole[b, prefix + original], values[b][place], rtol=1e-12, atol=1e-12)
        for original, last in away[b].items():
            torch.testing.assert_close(whole[b, prefix + original], last, rtol=1e-12, atol=1e-12)
    back = returning(tokens, 9)
    assert back.back.parked == ()
    assert [back.count - tokens.count] * batch == parked
    torch.testing.assert_close(back.restore("last"), whole, rtol=0, atol=0)


def test_no_decision_gives_the_input_bit_for_bit() -> None:
    tokens = start(2, 5, prefix=2, dtype=torch.float32)
    assert torch.equal(tokens.restore(), tokens.x)
    assert tokens.sizes.tolist() == [[1.0] * 5] * 2


def test_a_token_nobody_joins_is_bit_identical() -> None:
    tokens = start(2, 6, dtype=torch.float32)
    assignment = Assignment(
        keep=torch.tensor([[0, 1, 2, 3]] * 2), moved=torch.tensor([[4, 5]] * 2), onto=torch.tensor([[1, 1]] * 2)
    )
    after = apply(tokens, assignment)
    assert torch.equal(after.patches[:, [0, 2, 3]], tokens.patches[:, [0, 2, 3]])
    assert not torch.equal(after.patches[:, 1], tokens.patches[:, 1])


def test_what_a_norm_makes_of_tokens_goes_with_them_and_with_no_others() -> None:
    tokens = start(2, 6, dtype=torch.float32)
    norm = Norm(torch.rand(CHANNELS), None, 1e-6)
    after = apply(tokens, keep_only(torch.tensor([[0, 2]] * 2), 6), norm=norm)
    assert after.normed is not None and torch.equal(after.normed, norm(after.x))
    assert after.changed(version=9).normed is after.normed
    assert after.changed(x=after.x + 1).normed is None
    assert apply(tokens, keep_only(torch.tensor([[0, 2]] * 2), 6)).normed is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_skipped_and_dropped_tokens_are_bit_identical(dtype: torch.dtype) -> None:
    tokens = start(2, 6, dtype=dtype)
    keep = torch.tensor([[0, 2, 5], [1, 2, 3]])
    for until in ("block", "end"):
        after = apply(tokens, keep_only(keep, 6, until), block=3)
        after = replace(after, x=after.x * 3)
        whole = after.restore()
        assert whole.dtype == dtype
        for b, kept in enumerate(keep.tolist()):
            for i in range(6):
                factor = 3 if i in kept else 1
                assert torch.equal(whole[b, 1 + i], tokens.x[b, 1 + i] * factor)


@pytest.mark.parametrize(
    ("until", "point", "expected"),
    [
        ("block", "before", (4, False)),
        ("block", "middle", (4, False)),
        ("block", "after", (5, False)),
        ("attention", "before", (3, True)),
        ("attention", "after", (4, True)),
        (7, "before", (7, False)),
        (7, "after", (7, False)),
    ],
)
def test_return_points(until: Until, point: str, expected: tuple[int, bool]) -> None:
    assert return_point(until, 3, point) == expected
    tokens = apply(start(1, 4), keep_only(torch.tensor([[0, 3]]), 4, until), block=3, point=point)
    block, after_attention = expected
    assert returning(tokens, block, after_attention).count == 4
    earlier = (block, False) if after_attention else (block - 1, True)
    assert returning(tokens, *earlier).count == 2


def test_unparking_after_other_changes_equals_the_fast_path_when_nothing_changed() -> None:
    tokens = start(3, 8, seed=4)
    merged = apply(tokens, random_assignment(tokens, 6, 2, 1, "end", False))
    parked = apply(merged, keep_only(torch.tensor([[0, 2, 5], [1, 2, 3], [5, 4, 0]]), 6, 9))
    parked = replace(parked, x=parked.x * 2)
    fast = returning(parked, 9)
    slow = returning(replace(parked, version=parked.version + 5), 9)
    assert torch.equal(fast.rep, merged.rep)
    assert torch.equal(slow.rep, merged.rep.sort(dim=1).values)
    order = fast.rep.argsort(dim=1)
    for name in ("patches", "sizes", "rep"):
        wanted = getattr(fast, name)
        index = order.unsqueeze(2).expand_as(wanted) if wanted.dim() == 3 else order
        assert torch.equal(getattr(slow, name), wanted.gather(1, index))
    assert torch.equal(fast.restore(), slow.restore())
    back = torch.stack([order[b].argsort()[fast.group[b]] for b in range(3)])
    assert torch.equal(slow.group, back)


def test_parked_tokens_return_on_time_in_whatever_order_they_left() -> None:
    # The first to leave is the first due, the second leaves before that and stays longer.
    tokens = start(1, 6)
    first = apply(tokens, keep_only(torch.tensor([[0, 1, 2, 3]]), 6, 4), block=1)
    first = replace(first, x=first.x * 2)
    second = apply(first, keep_only(torch.tensor([[0, 1]]), 4, 8), block=2)
    second = replace(second, x=second.x * 5)
    at_four = returning(second, 4)
    assert at_four.group.tolist() == [[0, 1, -1, -1, 2, 3]]
    assert torch.equal(at_four.patches[:, 2:], tokens.patches[:, 4:])
    at_eight = returning(at_four, 8)
    assert at_eight.group.tolist() == [[0, 1, 2, 3, 4, 5]]
    factors = torch.tensor([10.0, 10, 2, 2, 1, 1], dtype=torch.float64).view(1, 6, 1)
    assert torch.equal(at_eight.patches, tokens.patches * factors)
    assert torch.equal(second.restore()[:, 1:], tokens.patches * factors)


def test_gone_while_others_are_parked() -> None:
    tokens = start(1, 5)
    parked = apply(tokens, keep_only(torch.tensor([[0, 1, 2]]), 5, 6))
    parked = replace(parked, x=parked.x + 1)
    gone = apply(parked, keep_only(torch.tensor([[2]]), 3))
    back = returning(replace(gone, x=gone.x + 1), 6)
    assert back.group.tolist() == [[-1, -1, 0, 1, 2]]
    assert back.sizes.sum() == 3
    plus = torch.tensor([1.0, 1, 2, 0, 0], dtype=torch.float64).view(1, 5, 1)
    torch.testing.assert_close(patch_values(back), tokens.patches + plus, rtol=0, atol=0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 12), data=st.data())
def test_slots_invert_an_assignment(seed: int, length: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, length))
    move = data.draw(st.integers(0, length - keep))
    assignment = random_assignment(start(2, length), keep, move, seed, "end", False)
    index = slots(assignment)
    assert index.shape == (2, length)
    for b in range(2):
        for place, old in enumerate(assignment.keep[b]):
            assert index[b, old] == place
        for old, place in zip(assignment.moved[b], assignment.onto[b], strict=True):
            assert index[b, old] == place
        assert (index[b] < 0).sum() == length - keep - move


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 12), data=st.data())
def test_assignment_from_group_numbers(seed: int, length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, length))
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randint(count, (2, length - count), generator=generator)
    index = torch.cat([torch.arange(count).expand(2, -1), rest], dim=1).gather(1, permuted(2, length, seed))
    assignment = Assignment.from_index(index, count)
    assert check(assignment, length) is None
    assert torch.equal(slots(assignment), index)
    for b in range(2):
        assert assignment.keep[b].tolist() == [index[b].tolist().index(g) for g in range(count)]
    means = apply(start(2, length), assignment).patches
    for b in range(2):
        for g in range(count):
            wanted = start(2, length).patches[b][index[b] == g].mean(dim=0)
            torch.testing.assert_close(means[b, g], wanted, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 10))
def test_ragged_keeps_what_each_image_chose(seed: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, length, generator=generator) < 0.5
    mask[:, 0] = True
    tokens = start(3, length)
    assignment = ragged(mask)
    assert check(assignment, length) is None
    after = apply(tokens, assignment)
    counts = mask.sum(dim=1)
    assert after.count == counts.max()
    assert (after.alive is None) == bool((counts == counts[0]).all())  # padding only where there is any
    alive = torch.ones(3, after.count) if after.alive is None else after.alive
    assert torch.equal(alive.sum(dim=1).long(), counts)
    assert torch.equal(after.group >= 0, mask)
    assert torch.equal(after.sizes.sum(dim=1), counts.double())
    whole = replace(after, x=after.x * 2).restore()[:, 1:]
    assert torch.equal(whole, torch.where(mask.unsqueeze(2), tokens.patches * 2, tokens.patches))


def test_ragged_with_parking_brings_everyone_back() -> None:
    mask = torch.tensor([[True, False, True, False], [True, True, True, False]])
    tokens = start(2, 4)
    parked = apply(tokens, replace(ragged(mask), until=5))
    wanted = torch.where(mask.unsqueeze(2), tokens.patches * 2, tokens.patches)
    parked = replace(parked, x=parked.x * 2)
    assert torch.equal(patch_values(returning(parked, 5)), wanted)
    slow = returning(replace(parked, version=parked.version + 1), 5)
    assert torch.equal(patch_values(slow), wanted)
    assert slow.sizes.sum(dim=1).tolist() == [4, 4]


def test_weights_of_zero_leave_the_leader_as_it_is() -> None:
    tokens = start(1, 4)
    after = apply(
        tokens,
        Assignment(
            keep=torch.tensor([[0, 1]]),
            moved=torch.tensor([[2, 3]]),
            onto=torch.tensor([[0, 1]]),
            weight=torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
        ),
    )
    assert torch.equal(after.patches[0, 0], tokens.patches[0, 0])
    torch.testing.assert_close(after.patches[0, 1], tokens.patches[0, 3])
    assert after.sizes.tolist() == [[2.0, 2.0]]


def test_a_sum_is_not_divided() -> None:
    tokens = start(1, 4)
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    after = apply(
        tokens,
        Assignment(
            keep=torch.tensor([[0, 1]]),
            moved=torch.tensor([[2, 3]]),
            onto=torch.tensor([[1, 1]]),
            weight=weight,
            reduce="sum",
        ),
    )
    assert torch.equal(after.patches[0, 0], tokens.patches[0, 0])
    torch.testing.assert_close(after.patches[0, 1], (weight[0, 1:, None] * tokens.patches[0, 1:]).sum(dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fill_mean_makes_the_average_that_of_the_tokens_present(dtype: torch.dtype) -> None:
    tokens = start(2, 6, dtype=dtype)
    merged = apply(
        tokens,
        Assignment(
            keep=torch.tensor([[0, 1, 2]] * 2),
            moved=torch.tensor([[3]] * 2),
            onto=torch.tensor([[0]] * 2),
            dropped=torch.tensor([[4, 5]] * 2),
        ),
    )
    whole = merged.restore("mean")[:, 1:]
    mean = (merged.patches * torch.tensor([2, 1, 1]).view(1, 3, 1)).sum(dim=1) / 4
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(whole.mean(dim=1), mean, rtol=tolerance, atol=tolerance)
    assert torch.equal(whole[:, 4], whole[:, 5])
    assert torch.equal(merged.restore("last")[:, 5:], tokens.x[:, 5:])


def soft_matrix(batch: int, count: int, patches: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, count, patches, generator=generator, dtype=torch.float64).softmax(dim=2)


def test_soft_assignment_with_a_matrix_back() -> None:
    tokens, matrix, way_back = start(2, 6), soft_matrix(2, 3, 6), soft_matrix(2, 6, 3, seed=2)
    after = apply(tokens, SoftAssignment(matrix=matrix, restore=way_back))
    torch.testing.assert_close(after.patches, matrix @ tokens.patches)
    assert torch.equal(after.x[:, :1], tokens.x[:, :1])
    assert after.shape == tokens.shape
    torch.testing.assert_close(after.sizes.sum(dim=1), torch.full((2,), 6.0, dtype=torch.float64))
    changed = replace(after, x=after.x * 2)
    torch.testing.assert_close(changed.restore()[:, 1:], 2 * way_back @ matrix @ tokens.patches)
    torch.testing.assert_close(changed.restore()[:, :1], 2 * tokens.x[:, :1])


def test_soft_assignment_goes_back_by_its_transpose_unless_told() -> None:
    tokens = start(2, 6)
    groups = torch.tensor([[0, 1, 1, 2, 0, 2], [2, 1, 0, 0, 0, 1]])
    matrix = (groups.unsqueeze(1) == torch.arange(3).view(1, 3, 1)).double()
    matrix = matrix / matrix.sum(dim=2, keepdim=True)
    soft = apply(tokens, SoftAssignment(matrix=matrix))
    hard = apply(tokens, Assignment.from_index(groups, 3))
    torch.testing.assert_close(soft.patches, hard.patches)
    torch.testing.assert_close(soft.restore(), hard.restore())
    torch.testing.assert_close(soft.sizes, hard.sizes)


def test_soft_assignment_with_a_function_back() -> None:
    tokens, matrix = start(2, 6), soft_matrix(2, 3, 6)

    def add(y: Tensor, before: Tensor) -> Tensor:
        assert y.shape == (2, 3, CHANNELS)
        return before + matrix.transpose(1, 2) @ y

    after = apply(tokens, SoftAssignment(matrix=matrix, restore=add))
    wanted = tokens.patches + matrix.transpose(1, 2) @ (3 * matrix @ tokens.patches)
    torch.testing.assert_close(replace(after, x=after.x * 3).restore()[:, 1:], wanted)


@pytest.mark.parametrize("function", [False, True])
def test_a_token_that_no_soft_group_takes_has_no_share(function: bool) -> None:
    matrix = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    back = (lambda y, before: before) if function else None
    after = apply(start(1, 3), SoftAssignment(matrix=matrix, restore=back))
    assert torch.isfinite(after.sizes).all()
    assert after.sizes.sum().item() == pytest.approx(2)


def test_decisions_inside_a_soft_assignment_come_back_through_both() -> None:
    tokens, outer, inner = start(2, 8), soft_matrix(2, 5, 8), soft_matrix(2, 3, 5, seed=7)
    once = apply(tokens, SoftAssignment(matrix=outer, restore=outer.transpose(1, 2)))
    twice = apply(once, SoftAssignment(matrix=inner, restore=inner.transpose(1, 2)))
    wanted = outer.transpose(1, 2) @ inner.transpose(1, 2) @ inner @ outer @ tokens.patches
    torch.testing.assert_close(patch_values(twice), wanted)
    pruned = apply(once, keep_only(torch.tensor([[0, 1, 2], [2, 3, 4]]), 5))
    torch.testing.assert_close(patch_values(pruned), patch_values(once))
    skipped = apply(once, keep_only(torch.tensor([[0, 1, 2], [2, 3, 4]]), 5, 4))
    torch.testing.assert_close(patch_values(returning(skipped, 4)), patch_values(once))
    assert twice.shape == tokens.shape and twice.events[-1].group is None


def test_soft_inside_parking_comes_back_too() -> None:
    tokens, matrix = start(2, 6), soft_matrix(2, 2, 4)
    parked = apply(tokens, keep_only(torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]]), 6, 5))
    soft = apply(parked, SoftAssignment(matrix=matrix, restore=matrix.transpose(1, 2)))
    mixed = matrix.transpose(1, 2) @ matrix @ parked.patches
    wanted = tokens.patches.clone()
    wanted[0, :4], wanted[1, [5, 4, 3, 2]] = mixed[0], mixed[1]
    torch.testing.assert_close(patch_values(soft), wanted)


def test_masks_multiply_and_move_nothing() -> None:
    tokens = start(2, 4)
    first, second = torch.tensor([[1.0, 0, 1, 1]] * 2), torch.tensor([[1.0, 1, 0, 1]] * 2)
    after = apply(apply(tokens, KeepMask(mask=first)), KeepMask(mask=second))
    assert torch.equal(after.mask, first * second)
    assert torch.equal(after.x, tokens.x) and after.count == 4


@pytest.mark.parametrize("case", ["merge", "prune", "park", "soft"])
def test_a_state_survives_flattening_and_pickling(case: str) -> None:
    tokens = start(2, 6)
    keep = torch.tensor([[0, 2, 4]] * 2)
    decision = {
        "merge": Assignment.from_index(torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), 3),
        "prune": keep_only(keep, 6),
        "park": keep_only(keep, 6, 4),
        "soft": SoftAssignment(matrix=soft_matrix(2, 3, 6)),
    }[case]
    state = apply(tokens, decision, block=2, method="made-up")
    leaves, spec = pytree.tree_flatten(state)
    assert all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, Tokens) and again.events[0].method == "made-up"
    assert torch.equal(again.restore(), state.restore())
    doubled = pytree.tree_map(lambda leaf: leaf * 2 if leaf is not None and leaf.is_floating_point() else leaf, state)
    # Matrices back double as well, so only what is stored as plain values can be compared.
    assert torch.equal(doubled.x, state.x * 2)


def test_a_state_stands_in_for_the_tensor_it_restores_to() -> None:
    state = apply(start(2, 6), keep_only(torch.tensor([[0, 2, 4]] * 2), 6))
    whole = state.restore()
    assert torch.equal(state[:, 0], whole[:, 0])
    assert torch.equal(
        torch.nn.functional.layer_norm(state, (CHANNELS,)), torch.nn.functional.layer_norm(whole, (CHANNELS,))
    )
    assert torch.equal(state.mean(dim=1), whole.mean(dim=1))
    assert state.shape == whole.shape and state.dtype == whole.dtype
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = state.nonsense


def test_the_input_state_is_never_changed() -> None:
    tokens = start(2, 6)
    copy = tokens.x.clone(), tokens.group.clone(), tokens.rep.clone()
    after = apply(tokens, random_assignment(tokens, 3, 2, 0, 4, True))
    returning(after, 4)
    restore(after)
    assert all(torch.equal(a, b) for a, b in zip(copy, (tokens.x, tokens.group, tokens.rep), strict=True))
    assert tokens.back.parked == () and tokens.back.canvas is None and tokens.events == ()


def test_gradients_reach_every_original() -> None:
    leaf = start(2, 6).x.clone().requires_grad_(True)
    tokens = Tokens.start(leaf, 1)
    weight = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    merged = Assignment(
        keep=torch.tensor([[0, 1, 2]] * 2),
        moved=torch.tensor([[3]] * 2),
        onto=torch.tensor([[1]] * 2),
        dropped=torch.tensor([[4, 5]] * 2),
        weight=weight,
    )
    soft = SoftAssignment(matrix=soft_matrix(2, 2, 3))
    apply(apply(tokens, merged), soft).restore().square().sum().backward()
    assert (leaf.grad.abs().sum(dim=2) > 0).all()
    assert (weight.grad[:, [1, 3]].abs() > 0).all() and (weight.grad[:, [0, 2, 4, 5]] == 0).all()


def test_gradients_of_merging_are_right() -> None:
    weight = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)
    x = start(1, 4).x.clone().requires_grad_(True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        assignment = Assignment(
            keep=torch.tensor([[1]]),
            moved=torch.tensor([[0, 3]]),
            onto=torch.tensor([[0, 0]]),
            dropped=torch.tensor([[2]]),
            weight=weight,
            until=3,
        )
        return apply(Tokens.start(x, 1), assignment).restore()

    assert torch.autograd.gradcheck(run, (x, weight))


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        (Assignment(keep=torch.tensor([[0, 1]])), "exactly once"),
        (Assignment(keep=torch.tensor([[0, 1, 1]])), "exactly once"),
        (Assignment(keep=torch.tensor([[0, 1]]), moved=torch.tensor([[2]])), "moved and onto go together"),
        (Assignment(keep=torch.tensor([[0, 1]]), moved=torch.tensor([[2]]), onto=torch.tensor([[2]])), r"\[-1, 2\)"),
        (
            Assignment(keep=torch.tensor([[0, 1]]), moved=torch.tensor([[2]]), onto=torch.tensor([[-1]])),
            "needs dropped",
        ),
        (
            Assignment(keep=torch.tensor([[0]]), moved=torch.tensor([[1, 2]]), onto=torch.tensor([[0]])),
            "shape of moved",
        ),
    ],
)
def test_check_names_what_is_wrong(assignment: Assignment, reason: str) -> None:
    said = check(assignment, 3)
    assert said is not None
    assert re.search(reason, said)


def test_check_accepts_what_is_right() -> None:
    assert check(keep_only(torch.tensor([[2, 0]]), 5), 5) is None


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), patches=st.integers(3, 10))
def test_images_do_not_see_each_other(seed: int, patches: int) -> None:
    assume(patches > 2)
    tokens = start(3, patches, seed=seed)
    assignment = random_assignment(tokens, patches - 2, 1, seed, "end", True)
    together = apply(tokens, assignment).restore()
    for b in range(3):
        rows = slice(b, b + 1)
        alone = Assignment(
            keep=assignment.keep[rows],
            moved=assignment.moved[rows],
            onto=assignment.onto[rows],
            dropped=assignment.dropped[rows],
            weight=assignment.weight[rows],
        )
        torch.testing.assert_close(
            apply(Tokens.start(tokens.x[rows], 1), alone).restore(), together[rows], rtol=1e-12, atol=1e-12
        )


def test_merging_in_one_image_and_pruning_in_the_next() -> None:
    x = torch.arange(8.0).view(2, 4, 1)
    keep, moved = torch.tensor([[0, 1]] * 2), torch.tensor([[2, 3]] * 2)
    onto = torch.tensor([[0, 1], [-1, -1]])
    assignment = Assignment(keep=keep, moved=moved, onto=onto, dropped=keep[:, :0])
    assert check(assignment, 4) is None
    state = apply(Tokens.start(x, 0), assignment)
    assert state.x.squeeze(2).tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert state.group.tolist() == [[0, 1, 0, 1], [0, 1, -1, -1]]
    assert state.sizes.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert state.restore().squeeze(2).tolist() == [[1.0, 2.0, 1.0, 2.0], [4.0, 5.0, 6.0, 7.0]]


@pytest.mark.parametrize(("reduce", "wanted"), [("sum", [4.0, 4.0]), ("mean", [2.0, 3.2])])
def test_dropped_tokens_spread_over_the_kept(reduce: str, wanted: list[float]) -> None:
    x = torch.tensor([[[9.0], [2.0], [3.0], [4.0], [0.0]]])
    spread = torch.tensor([[[0.5, 0.5], [0.25, 0.0]]])
    keep, dropped = torch.tensor([[0, 1]]), torch.tensor([[2, 3]])
    state = apply(Tokens.start(x, 1), Assignment(keep=keep, dropped=dropped, spread=spread, reduce=reduce))
    assert state.x.flatten().tolist() == pytest.approx([9.0, *wanted])
    assert state.group.tolist() == [[0, 1, -1, -1]] and state.table.size is None
    assert state.restore().flatten().tolist() == pytest.approx([9.0, *wanted, 4.0, 0.0])
