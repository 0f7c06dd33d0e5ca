"""Every built method on a whole tiny ViT in float64, against plain loops written from the formulas."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts

DEPTH, HEADS, PATCHES, SITES = 6, 2, 49, (1, 3, 4)


def _load_reference() -> ModuleType:
    # Tests are no package (importlib import mode), so a file beside this one is loaded by its path.
    spec = importlib.util.spec_from_file_location("parity_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference: Any = _load_reference()


def tiny() -> nn.Module:
    """Seven by seven patches; the projections are scaled so that attention is far from even."""
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=112, embed_dim=32, depth=DEPTH, num_heads=HEADS, num_classes=10
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name:
                parameter.mul_(20)
            elif parameter.dim() > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def partitions(model: nn.Module, images: Tensor) -> list[set[frozenset[int]]]:
    """The groups of originals that stand together at the end, per image; those that are gone are left out."""
    state = ts.trace(model, images).tokens
    assert state is not None
    found = []
    for row in state.group.tolist():
        groups: dict[int, list[int]] = {}
        for original, place in enumerate(row):
            if place >= 0:
                groups.setdefault(place, []).append(original)
        found.append({frozenset(group) for group in groups.values()})
    return found


def compare(model: nn.Module, images: Tensor, **reduction: Any) -> None:
    """Logits and all tokens to 1e-9, groups and token counts exactly, for every image."""
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    groups = partitions(model, images)
    record = ts.trace(model, images)
    stages = [(s.attended, s.processed) for s in record.stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        wanted_logits, wanted_tokens, run = reference.vit(state, image, HEADS, DEPTH, **reduction)
        assert run.counts == stages
        if run.chosen:
            assert [set((e.group[number] >= 0).nonzero()[:, 0].tolist()) for e in record.events] == run.chosen
        else:
            assert groups[number] == run.partition
        torch.testing.assert_close(tokens[number], wanted_tokens, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted_logits, rtol=0, atol=1e-9)


def test_the_plain_reference_is_the_dense_model(images: Tensor) -> None:
    model = tiny()
    state = model.state_dict()
    with torch.no_grad():
        dense = model(images)
        tokens = model.forward_features(images)
    assert dense.std() > 0.1
    for number, image in enumerate(images):
        logits, wanted, _ = reference.vit(state, image, HEADS, DEPTH)
        torch.testing.assert_close(dense[number], logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(tokens[number], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("r", [1, 5, 8, 24])
@pytest.mark.parametrize("proportional", [True, False])
def test_tome(images: Tensor, r: int, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.ToMe(r=r, proportional=proportional))
    compare(model, images, middle=reference.tome(r), log_size=proportional)


def test_tome_merges_by_content(images: Tensor) -> None:
    # Otherwise equal partitions would say little: they must differ between images.
    groups = partitions(ts.apply(tiny(), ts.ToMe(r=5)), images)
    assert groups[0] != groups[1] != groups[2]


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.3])
def test_topk(images: Tensor, keep: float) -> None:
    model = ts.apply(tiny(), ts.TopK(keep=keep, sites=SITES))
    compare(model, images, middle=reference.topk(SITES, keep))


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.3])
def test_evit(images: Tensor, keep: float) -> None:
    model = ts.apply(tiny(), ts.EViT(keep=keep, sites=SITES))
    compare(model, images, middle=reference.evit(SITES, keep))


@pytest.mark.parametrize("weight", ["class", "size"])
@pytest.mark.parametrize(
    ("keep", "clusters", "surplus"), [(0.7, 0.5, 0), (0.79, 0.8, 0), (0.5, 0.5, 3), (0.6, 0.5, -1), (0.3, 0.5, 1)]
)
def test_bat(images: Tensor, weight: str, keep: float, clusters: float, surplus: int) -> None:
    # Enough rounds that every pair of greedy matching is found; how often six are enough is in test_ops.py.
    proportional = weight == "size"
    method = ts.BAT(
        keep=keep, sites=SITES, clusters=clusters, surplus=surplus, weight=weight, proportional=proportional, rounds=25
    )
    model = ts.apply(tiny(), method)
    compare(model, images, middle=reference.bat(SITES, keep, clusters, surplus, weight), log_size=proportional)


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.1])
@pytest.mark.parametrize("score", ["own", "class"])
def test_tosa_controls(images: Tensor, keep: float, score: str) -> None:
    scorer: Callable[..., list[float]] = {
        "own": reference.own_columns,
        "class": lambda run, block: reference.class_attention(run),
    }[score]
    model = ts.apply(tiny(), ts.ToSA(keep=keep, score=score, stride=1))
    compare(model, images, skip=reference.tosa((1, 3, 5), keep, scorer))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_tosa_selector_against_whole_maps(images: Tensor, block: int) -> None:
    model = ts.apply(tiny(), ts.ToSA(keep=0.5, block=block, stride=1))
    torch.manual_seed(11)
    learned = [(name, p) for name, p in model.named_parameters() if ".learned." in name]
    assert len(learned) == 3 * 4
    with torch.no_grad():
        for _, parameter in learned:
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("fitted"):
                buffer.fill_(True)
    name = "blocks.{block}.tokensieve.learned.tosa_0."
    skip = reference.tosa((1, 3, 5), 0.5, reference.selector_columns(model.state_dict(), name))
    compare(model, images, skip=skip)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_a_fresh_tosa_is_its_control(stride: int, images: Tensor) -> None:
    with pytest.warns(ts.TokensieveWarning, match="has not been trained"), torch.no_grad():
        fresh = ts.apply(tiny(), ts.ToSA(keep=0.5, stride=stride))(images)
        own = ts.apply(tiny(), ts.ToSA(keep=0.5, stride=stride, score="own"))(images)
    torch.testing.assert_close(fresh, own, rtol=0, atol=1e-12)
