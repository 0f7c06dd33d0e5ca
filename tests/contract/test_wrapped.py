"""What stands around a block or inside of one: compilers, checkpoints, torch.fx, torch.vmap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import tokensieve as ts
from tests.helpers.models import DEFAULTS, FIRST, FIRST_OF_TIMM, build, images, run
from tests.helpers.orders import ORDERS, SPEC, blocks_of
from tokensieve.families._locate import family_of

RAGGED = [name for name, (config,) in DEFAULTS.items() if config.ragged]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


@ORDERS
@pytest.mark.parametrize(
    ("family", "name", "wrap"),
    [
        pytest.param(*model, wrap, marks=() if number < soon else pytest.mark.slow)
        for number, model in enumerate(FIRST)
        for wrap, soon in ((compiled, 1), (checkpoint_wrapper, 3))
    ],
)
def test_blocks_wrapped_one_by_one(family: str, name: str, wrap: Callable[[nn.Module], Any], first: str) -> None:
    model, x = build(family, name), images(2)
    dense, reduced = run(model, x), run(ts.apply(build(family, name), SPEC), x)
    if first == "apply":
        ts.apply(model, SPEC)
    blocks = blocks_of(model)
    for number, block in enumerate(blocks):
        blocks[number] = wrap(block)
    if first == "others":
        ts.apply(model, SPEC)
    torch.testing.assert_close(run(model, x), reduced)
    assert len(ts.trace(model, x).events) == len(blocks)
    ts.remove(model)
    torch.testing.assert_close(run(model, x), dense)
    assert len(family_of(model).family.blocks(family_of(model).owner)) == len(blocks)


@ORDERS
@pytest.mark.parametrize("part", ["attn", pytest.param("mlp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", ["tome", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bat", "mctf"))])
def test_parts_of_blocks_compiled_by_themselves(config: str, part: str, first: str) -> None:
    model, x = build(*FIRST[0]), images(2)
    reduced = run(ts.apply(build(*FIRST[0]), DEFAULTS[config]), x)
    if first == "apply":
        ts.apply(model, DEFAULTS[config])
    for block in blocks_of(model):
        setattr(block, part, compiled(getattr(block, part)))
    if first == "others":
        ts.apply(model, DEFAULTS[config])
    for _ in range(2):
        torch.testing.assert_close(run(model, x), reduced)


def test_an_attention_checkpointed_by_itself() -> None:
    model, x = build(*FIRST[0]).train(), images(2)
    for block in blocks_of(model):
        block.attn = checkpoint_wrapper(block.attn)
    with pytest.raises(ts.RefusedError, match="checkpointed by itself, and would be computed again without the bias"):
        ts.apply(model, SPEC)(x)
    plain = build(*FIRST[0]).train()
    gradients = []
    for one in (model, plain):
        ts.apply(ts.remove(one), "evit")(x).square().sum().backward()  # nothing is added to its logits
        gradients.append([parameter.grad for parameter in one.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_whole_blocks_checkpointed_inside_of_a_checkpoint() -> None:
    model, x = build(*FIRST[0]).train(), images(2)
    model.set_grad_checkpointing()  # type: ignore[operator]
    checkpoint(ts.apply(model, SPEC), x, use_reentrant=False).square().sum().backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", [family for family, _ in FIRST_OF_TIMM])
def test_torch_fx_is_refused(family: str) -> None:
    model = ts.apply(build(family, dict(FIRST)[family]), SPEC)
    with pytest.raises(ts.RefusedError, match=r"torch\.fx cannot trace a model with reduced tokens"):
        torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("config", RAGGED)
def test_torch_vmap_of_different_numbers_is_refused(config: str) -> None:
    model = ts.apply(build(*FIRST[0]), DEFAULTS[config])
    with pytest.raises(ts.TokensieveError, match=r"torch\.vmap shows one image at a time"), torch.no_grad():
        torch.vmap(lambda x: model(x[None])[0])(images(2))


def test_torch_vmap_of_equal_numbers() -> None:
    model = ts.apply(build(*FIRST[0]), SPEC)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(lambda x: model(x[None])[0])(images(2)), model(images(2)))
