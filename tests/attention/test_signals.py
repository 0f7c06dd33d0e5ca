"""A signal of the attention follows the tokens through what happens to them later in the block."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from tokensieve.attention.signals import Attended
from tokensieve.methods._view import BlockSignals
from tokensieve.tokens.algebra import apply
from tokensieve.tokens.decision import Assignment
from tokensieve.tokens.restore import returning
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.tokens.state import Tokens


def signals() -> BlockSignals:
    nothing = torch.zeros(2, 1, 7, 1)
    return BlockSignals(Attended(nothing, nothing, nothing, 1.0), None)


def start() -> Tokens:
    return Tokens.start(torch.randn(2, 1 + 6, 3, dtype=torch.float64), prefix=1)


def merge() -> Assignment:
    """Six tokens: 1 and 4 join the token led by 2, in the second image 0 and 5 join different ones; one leaves."""
    return Assignment(
        keep=torch.tensor([[2, 0, 3], [1, 2, 4]]),
        moved=torch.tensor([[1, 4], [0, 5]]),
        onto=torch.tensor([[0, 0], [2, 1]]),
        dropped=torch.tensor([[5], [3]]),
        until="attention",
    )


SCORE = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]], dtype=torch.float64)


@pytest.mark.parametrize("trailing", [False, True], ids=["(B, M)", "(B, M, D)"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [[4.0 + 2 + 16, 1, 8], [2, 4.0 + 32, 16.0 + 1]]),
        ("mean", [[(4.0 + 2 + 16) / 3, 1, 8], [2, (4.0 + 32) / 2, (16.0 + 1) / 2]]),
    ],
)
def test_merges(how: Literal["sum", "mean"], expected: list[list[float]], trailing: bool) -> None:
    seen = signals()
    seen.follow(merge())
    wanted = torch.tensor(expected, dtype=torch.float64)
    if trailing:
        carried = seen.carry(torch.stack([SCORE, -SCORE], dim=2), how)
        torch.testing.assert_close(carried, torch.stack([wanted, -wanted], dim=2))
    else:
        torch.testing.assert_close(seen.carry(SCORE, how), wanted)


def test_padding_counts_as_nothing() -> None:
    seen = signals()
    alive = torch.tensor([[True, True], [True, False]])
    keep, dropped = torch.tensor([[1, 3], [0, 2]]), torch.tensor([[0, 2, 4, 5], [1, 3, 4, 5]])
    seen.follow(Assignment(keep=keep, dropped=dropped, alive=alive))
    assert seen.carry(SCORE, "sum").tolist() == [[2.0, 8.0], [1.0, 0.0]]


def test_soft_tokens_weigh_what_they_are_mixed_from() -> None:
    seen = signals()
    matrix = torch.zeros(2, 2, 6, dtype=torch.float64)
    matrix[:, 0, :2] = 0.5
    matrix[:, 1, 2:] = 0.25
    seen.follow(SoftAssignment(matrix=matrix))
    assert seen.carry(SCORE, "mean").tolist() == [[1.5, 15.0]] * 2
    assert seen.carry(SCORE, "sum").tolist() == [[3.0, 60.0]] * 2


@pytest.mark.parametrize("merged", [False, True], ids=["untouched meanwhile", "merged meanwhile"])
def test_tokens_that_were_away_have_no_signal(merged: bool) -> None:
    """Tokens 1 and 4 miss the attention: those that come back after it count as 0, the others keep their own."""
    away = Assignment(keep=torch.tensor([[0, 2, 3, 5]] * 2), dropped=torch.tensor([[4, 1]] * 2), until="attention")
    before = apply(start(), away, point="before")
    seen = signals()
    score = torch.tensor([[1.0, 2.0, 4.0, 8.0]] * 2)  # of tokens 0, 2, 3, 5
    if merged:
        pair = Assignment(
            keep=torch.tensor([[0, 2, 3]] * 2), moved=torch.tensor([[1]] * 2), onto=torch.tensor([[1]] * 2)
        )
        before = apply(before, pair, point="middle")
        seen.follow(pair)
    after = returning(before, 0, after_attention=True)
    seen.follow_return(before, after)
    originals: Tensor = seen.carry(score, "sum").gather(1, after.group)
    expected = [1.0, 0.0, 6.0, 6.0, 0.0, 8.0] if merged else [1.0, 0.0, 2.0, 4.0, 0.0, 8.0]
    assert originals.tolist() == [expected] * 2
