"""Dense prediction: every layer that somebody reads comes out whole, whatever the method did in between."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import (
    DEFAULTS,
    DEPTH,
    FACTORIES,
    FIRST,
    FIRST_OF_TIMM,
    METHODS,
    MODELS,
    PATCHES,
    build,
    images,
    layout_of,
    liven,
    nothing,
)
from tokensieve.families._locate import family_of
from tokensieve.methods import _registry as registry


def one_of_each_prefix() -> list[tuple[str, str]]:
    """The first small model of every family with each number of prefix tokens: none, a class token, registers."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for family, name in MODELS:
        found.setdefault((family, layout_of(build(family, name)).prefix), (family, name))
    return list(found.values())


every_prefix = every_case(DEFAULTS, one_of_each_prefix())
every_on_first = every_case(DEFAULTS, FIRST)
TRACED = {("compile", "tosa"), ("export", "tome")}  # soon; other methods are traced without taps in test_compile.py


def blocks_of(model: nn.Module) -> list[nn.Module]:
    located = family_of(model)
    return located.family.blocks(located.owner)


@contextmanager
def read_by_hooks(model: nn.Module) -> Iterator[list[Tensor]]:
    """What hooks on the blocks see, as a decoder such as DPT's collects it: read as tensors after the run."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda module, args, out: seen.append(out)) for block in blocks_of(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def every_layer(model: nn.Module, x: Tensor) -> Tensor:
    """(DEPTH, B, P + N, C): what hooks read behind every block, prefix first."""
    with torch.no_grad(), read_by_hooks(model) as seen:
        model(x)
    return torch.stack(seen)


@every_prefix
def test_maps_have_the_shapes_of_the_dense_model(family: str, name: str, config: str) -> None:
    dense, x = build(family, name), images(2)
    model = ts.apply(build(family, name), DEFAULTS[config], fill="last")
    prefix = layout_of(dense).prefix
    options = {"output_fmt": "NCHW", "return_prefix_tokens": prefix > 0, "intermediates_only": True}
    with torch.no_grad():
        wanted, found = dense.forward_intermediates(x, **options), model.forward_intermediates(x, **options)
    read = every_layer(model, x)
    assert len(found) == len(wanted) == len(read) == DEPTH
    for layer, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if prefix:
            assert torch.equal(other[1], read[layer][:, :prefix])
            assert other[1].shape == one[1].shape
            one, other = one[0], other[0]
        assert other.shape == one.shape == (2, 48, 4, 5) and other.dtype == one.dtype and other.isfinite().all()
        assert torch.equal(other.flatten(2).transpose(1, 2), read[layer][:, prefix:])
    assert not torch.equal(read, every_layer(dense, x))


@every_on_first
def test_removing_nothing_is_bit_equal_at_every_layer(family: str, name: str, config: str) -> None:
    idle = nothing(registry.list_methods()[config])
    if idle is None:
        pytest.skip(f"{config} has no option that makes it remove nothing")
    model, x = build(family, name), images(2)
    dense = every_layer(model, x)
    ts.apply(model, idle)
    assert torch.equal(every_layer(model, x), dense)


@every_on_first
def test_maps_do_not_depend_on_the_batch(family: str, name: str, config: str) -> None:
    model, x = ts.apply(build(family, name).double(), DEFAULTS[config]), images(3, torch.float64)
    together = every_layer(model, x)
    alone = torch.cat([every_layer(model, image) for image in x.split(1)], dim=1)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(every_layer(model, x[order]), together[:, order], rtol=1e-5, atol=1e-5)


SKIPPING = [name for name in METHODS if DEFAULTS[name][0].returns == "block"]


@every_case(SKIPPING, one_of_each_prefix())
def test_a_skipped_token_is_bit_identical_across_the_layer(family: str, name: str, config: str) -> None:
    model, x = ts.apply(build(family, name), DEFAULTS[config]), images(2)
    layers, prefix = every_layer(model, x), layout_of(model).prefix
    events = ts.trace(model, x).events
    assert events
    for event in events:
        assert event.point == "after" and event.returns and event.group is not None
        before, behind = layers[event.block][:, prefix:], layers[event.block + 1][:, prefix:]
        skipped = event.group < 0
        assert 0 < int(skipped.sum()) < skipped.numel()
        assert torch.equal(before[skipped], behind[skipped])
        assert not (before[~skipped] == behind[~skipped]).all(dim=1).any()


DROPPING = [
    name
    for name, cls in registry.list_methods().items()
    if cls.until == "end" and not cls.ragged and not cls.undisturbed and cls.point == "middle"
]


@every_case(DROPPING, FIRST)
def test_a_dropped_token_keeps_its_last_value(family: str, name: str, config: str) -> None:
    model, x = ts.apply(build(family, name), DEFAULTS[config], fill="last"), images(2)
    layers, prefix = every_layer(model, x), layout_of(model).prefix
    gone = torch.zeros(2, PATCHES, dtype=torch.bool)
    by_block = {event.block: event.group for event in ts.trace(model, x).events if event.group is not None}
    for block in range(DEPTH - 1):
        if block in by_block:
            gone = by_block[block] < 0
        now, then = layers[block][:, prefix:], layers[block + 1][:, prefix:]
        assert torch.equal(now[gone], then[gone])
        assert not (now[~gone] == then[~gone]).all(dim=1).any()
    merged_only = not gone.any() and not (by_block[max(by_block)] < 0).any()
    if merged_only:  # then whoever shares a token has one value
        last = layers[-1][:, prefix:]
        group = by_block[max(by_block)]
        for image in range(2):
            for number in group[image].unique():
                assert len(last[image][group[image] == number].unique(dim=0)) == 1


@every_case(DEFAULTS, FIRST_OF_TIMM)  # models of transformers: test_hugging_face.py
def test_images_of_other_sizes(family: str, name: str, config: str) -> None:
    """Odd sizes, other aspects, one row, one column, one patch: each works, and knows its grid."""
    model = liven(FACTORIES[family][name](depth=2, dynamic_img_size=True, dynamic_img_pad=True)).eval()
    sizes = {(70, 90): (5, 6), (80, 64): (5, 4), (16, 112): (1, 7), (112, 16): (7, 1), (16, 16): (1, 1)}
    wanted = [every_layer(model, torch.randn(2, 3, *size)).shape for size in sizes]
    ts.apply(model, DEFAULTS[config])
    for (size, grid), shape in zip(sizes.items(), wanted, strict=True):
        x = torch.randn(2, 3, *size)
        found = every_layer(model, x)
        assert found.shape == shape and found.isfinite().all()
        assert model.forward_intermediates(x, intermediates_only=True)[-1].shape == (2, 48, *grid)
        state = ts.trace(model, x).tokens
        assert state is None or state.grid == grid


@pytest.mark.parametrize("method", [name for name in METHODS if registry.list_methods()[name].undivided])
def test_without_a_grid_one_sentence_says_so(method: str) -> None:
    model = ts.apply(build("timm-vit", "plain"), DEFAULTS[method])
    with torch.no_grad(), pytest.raises(ts.TokensieveError, match=r"30 patches are not the 4 × 5 of this model"):
        model.blocks(torch.randn(1, 31, 48))
    with pytest.raises(ts.TokensieveError, match=rf"{method} acts on the grid of all 20 patches, and tome leaves"):
        ts.apply(build("timm-vit", "plain"), [ts.ToMe(r=2), *DEFAULTS[method]])


def test_a_grid_is_known_to_one_run_alone() -> None:
    model = liven(FACTORIES["timm-vit"]["plain"](depth=2, dynamic_img_size=True)).eval()
    ts.apply(model, "expedite:sites=[1]")
    for size, left in (((96, 112), 20), ((64, 80), 12), ((96, 112), 20)):
        assert ts.trace(model, torch.randn(1, 3, *size)).stages[-1].processed == 1 + left


def test_a_compact_state_is_read_like_a_tensor() -> None:
    model, x = ts.apply(build("timm-vit", "plain"), "tome:r=4"), images(2)
    with torch.no_grad(), read_by_hooks(model) as seen:
        model(x)
    state, tensor = seen[1], torch.cat([seen[1]])
    assert (
        isinstance(state, ts.Tokens) and type(tensor) is Tensor and state.x.shape[1] < tensor.shape[1] == len(state[0])
    )
    assert state.shape == tensor.shape and state.dtype == tensor.dtype and state.device == tensor.device
    weight = torch.randn(48, 48)
    readings = {
        "indexing": (state[:, 1:], tensor[:, 1:]),
        "methods": (state.permute(0, 2, 1).mean(), tensor.permute(0, 2, 1).mean()),
        "functions": (torch.nn.functional.layer_norm(state, (48,)), torch.nn.functional.layer_norm(tensor, (48,))),
        "lists": (torch.stack([state, seen[0]]), torch.stack([tensor, torch.cat([seen[0]])])),
        "operators": ((2 * state - 1) @ weight + -state / 3, (2 * tensor - 1) @ weight - tensor / 3),
        "iteration": (list(state)[1], tensor[1]),
        "numpy": (torch.from_numpy(np.asarray(state)), tensor),
    }  # fmt: skip
    for way, (one, other) in readings.items():
        assert type(one) is Tensor, way
        torch.testing.assert_close(one, other, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize(
    ("way", "method"),
    [
        pytest.param(way, method, marks=() if (way, method) in TRACED else pytest.mark.slow)
        for way in ("compile", "export")
        for method in ("tome", "expedite", "ailurus", "tosa", "evit")
    ],
)
def test_taps_without_python(way: str, method: str) -> None:
    """Compact states restore themselves in compiled and exported graphs too."""
    model = liven(FACTORIES["timm-vit"]["plain"](depth=2)).double().eval()
    reader = Reader(ts.apply(model, DEFAULTS[method]))
    x, other = images(2, torch.float64), images(4, torch.float64)[2:]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        wanted = reader(other)
        if way == "compile":
            found = torch.compile(reader, backend="eager", fullgraph=True)(other)
        else:
            found = torch.export.export(reader, (x,)).module()(other)
        torch.compiler.reset()
    for one, two in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, two)
    assert wanted[0].shape == (2, 48, 4, 5)


class Reader(nn.Module):
    """Reads all layers of a model, as a pixel head does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one map (B, D, rows, columns) for every block."""
        return tuple(self.model.forward_intermediates(x, intermediates_only=True))


@every_on_first
def test_tapped_blocks_give_plain_tensors_and_change_nothing(family: str, name: str, config: str) -> None:
    x = images(2)
    model, tapped = build(family, name), build(family, name)
    ts.apply(model, DEFAULTS[config])
    ts.apply(tapped, DEFAULTS[config], taps=[0, 2])
    tapped.load_state_dict(model.state_dict())  # fresh learned parts are drawn
    with torch.no_grad(), read_by_hooks(model) as selves, read_by_hooks(tapped) as plain:
        assert torch.equal(model(x), tapped(x))
    assert all(type(plain[block]) is Tensor for block in (0, 2))
    assert all(torch.equal(torch.stack([one]), torch.stack([other])) for one, other in zip(selves, plain, strict=True))
    counts = [[(s.attended, s.processed) for s in ts.trace(each, x).stages] for each in (model, tapped)]
    assert counts[0] == counts[1]  # compact in between


@pytest.mark.parametrize("taps", [[4], [-1], [0.5], 2, "0", [True]])
def test_taps_name_blocks(taps: object) -> None:
    with pytest.raises(ts.TokensieveError, match=r"taps must be 0-based block numbers from 0 to 3"):
        ts.apply(build("timm-vit", "plain"), "tome:r=2", taps=taps)


def test_taps_are_kept_by_files_and_checkpoints(tmp_path: Path) -> None:
    model, x = ts.apply(FACTORIES["timm-vit"]["plain"]().eval(), "tome:r=2", taps=[1]), images(2)
    again = ts.load(ts.save(model, tmp_path / "saved"))
    with torch.no_grad(), read_by_hooks(again) as seen:
        assert torch.equal(again(x), model(x))
    assert type(seen[1]) is Tensor and isinstance(seen[2], ts.Tokens)
    plain = [p.grad for p in backward(model.train(), x)]
    model.set_grad_checkpointing(True)
    for gradient, parameter in zip(plain, backward(model, x), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def backward(model: nn.Module, x: Tensor) -> list[nn.Parameter]:
    """The parameters of a model after one backward pass."""
    model.zero_grad()
    model(x).square().mean().backward()
    return list(model.parameters())
