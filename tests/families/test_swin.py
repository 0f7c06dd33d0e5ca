"""Swin, in its longest stage: windows that are shifted in every other block, also beyond the border."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tokensieve.families._maps import Windows
from tokensieve.measure.macs import count

NOTHING = "tome:r=0+random:keep=1.0:sites=[0]"
KINDS = ("tome:r=8", "pitome:keep=0.8:sites=[0,2]", "random:keep=0.5:sites=[0]")
SIZES = {"timm": 224, "timm, padded": 240, "transformers": 224, "transformers, padded": 240}
every_tower = pytest.mark.parametrize("name", SIZES)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    small = {"window_size": 7, "embed_dim": 24, "depths": [1, 1, 4, 1], "num_heads": [1, 2, 3, 6]}
    if "timm" in name:
        model: nn.Module = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=SIZES[name], num_classes=5, **small
        )
    else:
        from transformers import SwinConfig, SwinForImageClassification

        model = SwinForImageClassification(SwinConfig(image_size=SIZES[name], num_labels=5, **small))
    for parameter, weight in liven(model).named_parameters():
        if "bias_table" in parameter:
            nn.init.normal_(weight)
    return model.eval()


def tower(name: str) -> Any:
    return copy.deepcopy(_built(name))


def images(name: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(x))


@every_tower
def test_exact_where_nothing_is_removed_and_reduced_where_something_is(name: str) -> None:
    model, x = tower(name), images(name)
    (dense,) = run(model, x)
    assert torch.equal(run(ts.apply(model, NOTHING), x)[0], dense)
    for spec in KINDS:
        (reduced,) = run(ts.apply(ts.remove(model), spec), x)
        assert reduced.shape == dense.shape and not torch.equal(reduced, dense)
        torch.testing.assert_close(run(model, x[1:])[0][0], reduced[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(run(ts.remove(model), x)[0], dense)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_stages_are_whole_for_those_who_read_them(name: str) -> None:
    model, x = tower(name), images(name)
    if name == "timm":
        dense = model.forward_intermediates(x, intermediates_only=True)
        reduced = ts.apply(model, "tome:r=8").forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
    else:
        dense = model(x, output_hidden_states=True).hidden_states
        reduced = ts.apply(model, "tome:r=8")(x, output_hidden_states=True).hidden_states  # type: ignore[operator]
    assert [part.shape for part in reduced] == [part.shape for part in dense]
    assert all(type(part) is Tensor for part in reduced)
    assert torch.equal(reduced[1], dense[1]) and not torch.equal(reduced[-1], dense[-1])


def test_a_probe_leaves_the_windows_that_a_run_would_set_for_good() -> None:
    """transformers' Swin shrinks the windows of its blocks, for all later runs, when it is given a small image."""
    from transformers import SwinConfig, SwinModel

    sizes = {"window_size": 4, "embed_dim": 24, "depths": [1, 1, 2, 2], "num_heads": [1, 2, 3, 6]}
    model: Any = SwinModel(SwinConfig(image_size=128, **sizes)).eval()
    blocks = [block for stage in model.encoder.layers for block in stage.blocks]
    before = [(block.window_size, block.shift_size) for block in blocks]
    ts.apply(model, "tome:r=0")
    assert [(block.window_size, block.shift_size) for block in blocks] == before
    model(torch.randn(1, 3, 128, 128))
    assert [(block.window_size, block.shift_size) for block in blocks] != before  # else this tests nothing


def test_methods_that_read_the_attention_of_an_image_are_refused() -> None:
    with pytest.raises(ts.TokensieveError, match="no block has it whole, so choose a method that reads none"):
        ts.apply(tower("timm"), "evit:keep=0.5:sites=[1]")


def test_fewer_tokens_cost_fewer_macs() -> None:
    model, x = tower("timm"), images("timm", 1)
    dense = count(model, x)
    assert [block.attended for block in dense.blocks] == [196] * 4
    channels, pairs = 96, 4 * 49**2
    wide = [12 * channels**2 * 196 + 2 * channels * pairs] * 4
    wide[1] = wide[3] = wide[0] - 2 * channels * (pairs - _pairs_of_shifted())
    assert [block.macs for block in dense.blocks] == wide
    reduced = count(ts.apply(model, "random:keep=0.5:sites=[0]"), x)
    assert [block.attended for block in reduced.blocks] == [196, 98, 98, 98]
    assert reduced.total < dense.total


def _pairs_of_shifted() -> int:
    """Pairs of tokens of a 14 × 14 grid in windows of 7 × 7 shifted by 3, without those that a mask keeps apart."""
    along = [7, 4, 3]  # one window, and the two parts of another
    return sum(one**2 * other**2 for one in along for other in along)


@pytest.mark.parametrize("rolled", [(10, 13), (12, 14)])
def test_shifted_windows_are_those_of_a_rolled_grid(rolled: tuple[int, int]) -> None:
    windows = Windows((10, 13), (4, 7), (2, 3), rolled)
    rows, columns = (part.reshape(1, -1) for part in torch.meshgrid(torch.arange(10), torch.arange(13), indexing="ij"))
    numbers = torch.zeros(rolled, dtype=torch.int64)
    numbers[:10, :13] = windows.of(rows, columns).view(10, 13) // 9
    moved = torch.roll(numbers, (-2, -3), (0, 1))
    real = torch.zeros(rolled, dtype=torch.bool)
    real[:10, :13] = True
    there = torch.roll(real, (-2, -3), (0, 1))
    for row in range(0, rolled[0], 4):
        for column in range(0, rolled[1], 7):
            place = slice(row, row + 4), slice(column, column + 7)
            assert moved[place][there[place]].unique().numel() == 1


@pytest.mark.slow
def test_graphs_attend_in_shifted_windows_by_one_call_with_a_mask() -> None:
    model, x = tower("timm, padded"), images("timm, padded")
    ts.apply(model, "tome:r=8")
    (wanted,) = run(model, x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(run(exported, x)[0], wanted, rtol=1e-4, atol=1e-4)
