"""Towers that pack images of any size in one row, with attention to the whole image or in windows."""

from __future__ import annotations

import copy
import importlib
import inspect
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tests.helpers.walk_configs import config_for
from tests.helpers.walk_inputs import parameters
from tokensieve.attention.pairs import Pairs
from tokensieve.attention.windows import WindowRows
from tokensieve.families._locate import family_of
from tokensieve.families.hf_packed import BLOCKS

transformers = pytest.importorskip("transformers")
GRID = (8, 12)
SOON = ("qwen2_5_vl", "qwen3_vl")
every_tower = pytest.mark.parametrize(
    "folder", [pytest.param(folder, marks=() if folder in SOON else pytest.mark.slow) for folder in BLOCKS]
)
KINDS = ("tome:r=10", "bat:keep=0.5:sites=[1]", "evit:keep=0.5:sites=[1]", "ats:sites=[1]")


@cache
def _built(folder: str) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    kinds = [
        kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and "ision" in name and "forward" in vars(kind)
        and issubclass(kind, transformers.PreTrainedModel) and list(parameters(kind))[1:2] == ["grid_thw"]
    ]  # fmt: skip
    torch.manual_seed(0)
    try:
        return liven(kinds[0](config_for(kinds[0]))).eval()
    except ValueError as error:
        pytest.skip(f"a small config of it cannot be built: {error}")


def tower(folder: str) -> nn.Module:
    """A fresh copy of a small tower, dense, in eval mode."""
    return copy.deepcopy(_built(folder))


def packed(model: Any, *grids: tuple[int, int]) -> dict[str, Any]:
    """Images of these (rows, columns) of patches, packed."""
    name = list(inspect.signature(type(model).forward).parameters)[1]
    width = next(p for p in model.patch_embed.parameters() if p.dim() > 1)[0].numel()
    rows = torch.randn(sum(a * b for a, b in grids), width, generator=torch.Generator().manual_seed(1))
    return {name: rows, "grid_thw": torch.tensor([[1, *grid] for grid in grids])}


def run(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(**inputs))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_tower
def test_exact_where_nothing_is_removed_and_reduced_where_something_is(folder: str) -> None:
    model = tower(folder)
    inputs = packed(model, GRID, GRID, GRID)
    dense = run(model, inputs)
    assert family_of(model).family.name == "hf-packed"
    assert same(run(ts.apply(model, "tome:r=0+topk:keep=1.0:sites=[1]"), inputs), dense)
    name = next(iter(inputs))
    count = GRID[0] * GRID[1]
    alone = {name: inputs[name][count : 2 * count], "grid_thw": inputs["grid_thw"][:1]}
    for spec in KINDS:
        ts.apply(ts.remove(model), spec)
        reduced = run(model, inputs)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        for one, every in zip(run(model, alone), reduced, strict=True):  # the same with any neighbours
            third = len(every) // 3
            torch.testing.assert_close(one, every[third : 2 * third], rtol=1e-4, atol=1e-4)
    assert same(run(ts.remove(model), inputs), dense)


@every_tower
def test_images_of_different_sizes_each_lose_their_own_number(folder: str) -> None:
    model = tower(folder)
    sizes = (GRID, (8, 8), GRID, (12, 12))
    inputs = packed(model, *sizes)
    dense = run(model, inputs)
    assert same(run(ts.apply(model, "tome:r=0+topk:keep=1.0:sites=[1]"), inputs), dense)
    name = next(iter(inputs))
    counts = [rows * columns for rows, columns in sizes]
    for spec in KINDS:
        ts.apply(ts.remove(model), spec)
        reduced = run(model, inputs)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        alone = [
            run(model, {name: patches, "grid_thw": grid.unsqueeze(0)})
            for patches, grid in zip(inputs[name].split(counts), inputs["grid_thw"], strict=True)
        ]
        for every, *images in zip(reduced, *alone, strict=True):
            torch.testing.assert_close(torch.cat(images), every, rtol=1e-4, atol=1e-4)
    assert same(run(ts.remove(model), inputs), dense)


def test_what_images_of_different_sizes_cannot_do() -> None:
    model: Any = ts.apply(tower("qwen2_vl"), "tome:r=10")
    with pytest.raises(ts.TokensieveError, match="trace images of one size at a time"):
        ts.trace(model, packed(model, GRID, (8, 8)))


def test_gradients_and_hidden_states_of_images_of_different_sizes() -> None:
    model: Any = tower("qwen3_vl")
    inputs = packed(model, GRID, (8, 8))
    dense = model(**inputs, output_hidden_states=True).hidden_states
    reduced = ts.apply(model, "tome:r=10:sites=[1]")(**inputs, output_hidden_states=True).hidden_states  # type: ignore[operator]
    assert [type(part) for part in reduced] == [Tensor] * len(dense)
    assert [part.shape for part in reduced] == [part.shape for part in dense]
    assert torch.equal(reduced[1], dense[1]) and not torch.equal(reduced[2], dense[2])
    tapped: Any = ts.apply(ts.remove(model), "tome:r=10:sites=[1]", taps=[1, 2])
    sum(part.square().mean() for part in tensors(tapped(**inputs))).backward()  # type: ignore[union-attr]
    assert all(weight.grad is not None for weight in model.blocks[0].parameters())


def test_an_image_may_be_larger_than_the_one_that_stands_for_others() -> None:
    model: Any = ts.apply(tower("qwen2_vl"), "tome:r=200:sites=[1]")
    trace = ts.trace(model, packed(model, (24, 24)))
    assert [stage.processed for stage in trace.stages] == [576, 376, 376, 376]
    assert ts.trace(model, packed(model, (8, 8))).stages[-1].processed == 32  # half at most


def test_blocks_by_themselves_are_refused() -> None:
    model: Any = ts.apply(tower("qwen2_vl"), "tome:r=10")
    with pytest.raises(ts.RefusedError, match="run without the tower around them"):
        model.blocks[0](torch.randn(96, 48), cu_seqlens=torch.tensor([0, 96]), position_embeddings=None)


def test_methods_that_read_the_attention_of_an_image_act_where_there_is_one() -> None:
    with pytest.raises(ts.TokensieveError, match=r"evit reads the attention of an image in block 2, .* among \[1, 3\]"):
        ts.apply(tower("qwen2_5_vl"), "evit:sites=[1,2]")


def test_a_record_of_packed_images() -> None:
    model = ts.apply(tower("qwen2_5_vl"), "tome:r=10")
    trace = ts.trace(model, packed(model, GRID, GRID))
    assert [stage.processed for stage in trace.stages] == [86, 76, 66, 56]


def test_hidden_states_are_rows_of_every_patch() -> None:
    model: Any = tower("qwen3_vl")
    inputs = packed(model, GRID, GRID)
    dense = model(**inputs, output_hidden_states=True).hidden_states
    reduced = ts.apply(model, "tome:r=10:sites=[1]")(**inputs, output_hidden_states=True).hidden_states  # type: ignore[operator]
    assert [type(part) for part in reduced] == [Tensor] * len(dense)
    assert [part.shape for part in reduced] == [part.shape for part in dense]
    assert torch.equal(reduced[1], dense[1]) and not torch.equal(reduced[2], dense[2])


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    logits = q @ k.transpose(-1, -2) + (0 if bias is None else bias)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("biased", [True, False])
def test_windows_are_a_mask(seed: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(0, 5, (2, 17), generator=generator) + torch.tensor([[0], [5]])
    q, k, v = torch.randn(3, 2, 3, 17, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, 1, 1, 17, generator=generator, dtype=torch.float64) if biased else None
    apart = (windows.unsqueeze(2) != windows.unsqueeze(1)).unsqueeze(1)
    mask = torch.zeros(2, 1, 17, 17, dtype=torch.float64).masked_fill(apart, -torch.inf)
    expected = plain(q, k, v, mask if bias is None else mask + bias)
    torch.testing.assert_close(WindowRows(windows).attend(plain, q, k, v, bias), expected)


@pytest.mark.parametrize("images", [1, 2])
def test_the_bias_of_the_pairs_that_are_present(images: int) -> None:
    bias = torch.randn(images, 3, 7, 7)
    positions = torch.tensor([[4, 0, 2], [1, 3, 4]])
    found = Pairs(positions, 2).present(bias)
    for image in range(2):
        places = [0, 1, *(positions[image] + 2).tolist()]
        assert torch.equal(found[image], bias[min(image, images - 1)][:, places][:, :, places])
    assert Pairs(None, 2).present(bias) is bias
