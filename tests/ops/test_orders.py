"""The orders of the controls: drawn from a seed, or spread evenly, the same on every machine."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tokensieve.methods.controls import spread, spread_line
from tokensieve.ops.shuffle import shuffled

CPU = torch.device("cpu")


def one_by_one(length: int, seed: int) -> list[int]:
    """The generator as it is defined: one state after the other."""
    state = (seed * 2654435761 + 1) % 2**32
    keys = []
    for position in range(length):
        state = (1664525 * state + 1013904223) % 2**32
        keys.append((state >> 8, position))
    return [position for _, position in sorted(keys)]


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 700), seed=st.integers(-(2**40), 2**40))
def test_shuffled_is_the_generator_state_by_state(length: int, seed: int) -> None:
    assert shuffled(length, seed, CPU).tolist() == one_by_one(length, seed)


def test_shuffled_takes_long_sequences() -> None:
    order = shuffled(4096, 7, CPU)
    assert order.tolist() == one_by_one(4096, 7) and order.tolist() != shuffled(4096, 8, CPU).tolist()


@pytest.mark.parametrize("length", [1, 2, 35, 196])
def test_every_beginning_of_a_line_is_spread(length: int) -> None:
    rank = spread_line(length, CPU)
    assert sorted(rank.tolist()) == list(range(length))
    for count in (length // 4, length // 2):
        if count:
            chosen = (rank < count).nonzero().flatten().tolist()
            gaps = [b - a for a, b in zip([-1, *chosen], [*chosen, length], strict=True)]
            assert max(gaps) <= 3 * length / count


def test_grid_works_at_another_size_than_the_layouts() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True).eval()
    ts.apply(model, ts.Grid(keep=0.5, sites=(0,)))
    with torch.no_grad():
        assert ts.trace(model, torch.randn(1, 3, 64, 64)).stages[1].attended == 1 + 8
        assert ts.trace(model, torch.randn(1, 3, 96, 80)).stages[1].attended == 1 + 15


def test_the_ranks_of_grid_are_no_part_of_the_state_dict() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    keys = list(model.state_dict())
    ts.apply(model, ts.Grid(keep=0.5, sites=(0,)))
    assert list(model.state_dict()) == keys
    assert model.get_buffer("blocks.0.tokensieve.learned.grid_0.rank").tolist() == spread(4, 4)
