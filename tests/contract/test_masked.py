"""Masks that stand in for removal while training: the same decisions, the same answer, for every method there is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import CONFIGS, FIRST, PATCHES, build, images, layout_of, run
from tokensieve.engine.block import SievedBlock, Site
from tokensieve.methods._method import Method


def quiet(method: Method) -> Method:
    """The method without what is drawn or relaxed while training, which would not be what is removed."""
    switches = {"noise", "relaxed"} & set(method.option_types())
    return dataclasses.replace(method, **dict.fromkeys(switches, False))


QUIET: dict[str, tuple[Method, ...]] = {
    config: tuple(map(quiet, methods))
    for config, methods in {**CONFIGS, "evit:fuse=false": (ts.EViT(fuse=False),)}.items()
}
STATIC = {config: methods for config, methods in QUIET.items() if not any(method.ragged for method in methods)}
PRUNING = {"topk", "random", "grid", "dynamicvit", "evit:fuse=false"}


def hidden(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The answer of a training forward, and how many tokens of an image are hidden at its end."""
    seen: list[Any] = []
    last = [module for module in model.modules() if isinstance(module, Site)][-1]
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for module in model.modules():  # dropout, where a model has some by default, stays off
        module.training = isinstance(module, SievedBlock)
    try:
        answer = run(model, x)
    finally:
        handle.remove()
        model.eval()
    return answer, seen[0].hidden


@every_case(STATIC)
def test_a_masked_training_forward_is_the_removal_forward(family: str, name: str, config: str) -> None:
    model = ts.apply(build(family, name).double(), STATIC[config], masked=True)
    x = images(3, torch.float64)
    removed = run(model, x)
    masked, count = hidden(model, x)
    torch.testing.assert_close(masked, removed, rtol=1e-6, atol=1e-6)
    prunes = any(name in config for name in PRUNING)
    tokens = ts.trace(model, x).tokens
    assert tokens is not None and tokens.hidden == 0
    if prunes and len(STATIC[config]) == 1:
        assert count == PATCHES - tokens.count
    else:  # some prune in some blocks and merge in others
        skippers = sum(method.returns_at(0, layout_of(model)) != "end" for method in STATIC[config])
        assert int(prunes) <= count <= PATCHES - tokens.count + skippers * PATCHES


@every_case(sorted(PRUNING & STATIC.keys()))
def test_in_float32_as_well(family: str, name: str, config: str) -> None:
    model = ts.apply(build(family, name), STATIC[config], masked=True)
    torch.testing.assert_close(hidden(model, images(2))[0], run(model, images(2)), rtol=1e-5, atol=5e-6)


@every_case(sorted(PRUNING & STATIC.keys()), FIRST)
def test_half_precision_and_checkpointing(family: str, name: str, config: str) -> None:
    model = ts.apply(build(family, name), STATIC[config], masked=True).train()
    model.set_grad_checkpointing(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images(2))
    out.float().square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


def test_without_masks_nothing_is_hidden() -> None:
    family, name = FIRST[0]
    model = ts.apply(build(family, name), "topk")
    assert hidden(model, images(1))[1] == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sure(ts.Method):
    """Keeps the tokens with the largest first channel, and says how sure it is."""

    name = "sure-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1, 2)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2

    def module(self, layout: ts.Layout) -> nn.Module:
        return nn.Linear(layout.dim, 1)

    def assign(self, view: ts.View) -> ts.Assignment:
        assert view.module is not None and view.tokens.hidden == 0
        sure = view.module(view.x).squeeze(2).sigmoid()
        keep = sure.argsort(dim=1, descending=True)
        view.add_loss("size", sure.mean())
        return ts.Assignment(keep=keep[:, : view.keep], dropped=keep[:, view.keep :], soft=sure)


@pytest.mark.parametrize(("family", "name"), [*FIRST, ("timm-vit", "siglip-gap")])
def test_what_decides_has_a_gradient_of_the_masks(family: str, name: str) -> None:
    model, x = ts.apply(build(family, name).double(), Sure()), images(2, torch.float64)
    removed = run(model, x)
    model.train()
    out = model(x)
    torch.testing.assert_close(out, removed, rtol=1e-9, atol=1e-9)
    out.square().mean().backward()
    parts = [module for module in model.modules() if isinstance(module, Site) and module.learned]
    for site in parts:
        for parameter in site.learned.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0
    assert len(parts) == 2


def test_what_cannot_be_masked_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Soft(ts.Method):
        name = "soft-of-the-masks"

        def blocks(self, depth: int) -> tuple[int, ...]:
            return (2,)

        def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
            return patches // 2

        def assign(self, view: ts.View) -> ts.SoftAssignment:
            return ts.SoftAssignment(matrix=view.x[..., : view.keep].transpose(1, 2).softmax(dim=2))

    model = ts.apply(build(*FIRST[0]), [ts.TopK(sites=(1,)), Soft()], masked=True)
    run(model, images(1))
    with pytest.raises(ts.TokensieveError, match="train it without masks"):
        hidden(model, images(1))
