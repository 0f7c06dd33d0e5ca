"""Every built method on a whole tiny ViT in float64, against plain loops written from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.harness import DEPTH, HEADS, SITES, compare, partitions, tiny
from tests.helpers.references import plain as reference


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


@pytest.mark.parametrize("queries", ["class", "all"])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_tosa_selector_against_whole_maps(images: Tensor, block: int, queries: Literal["class", "all"]) -> None:
    model = ts.apply(tiny(), ts.ToSA(keep=0.5, queries=queries, block=block, stride=1))
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
    skip = reference.tosa((1, 3, 5), 0.5, reference.selector_columns(model.state_dict(), name, queries))
    compare(model, images, skip=skip)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_a_fresh_tosa_is_its_control(stride: int, images: Tensor) -> None:
    with pytest.warns(ts.TokensieveWarning, match="score='own'"), torch.no_grad():
        fresh = ts.apply(tiny(), ts.ToSA(keep=0.5, queries="all", stride=stride))(images)
        own = ts.apply(tiny(), ts.ToSA(keep=0.5, stride=stride, score="own"))(images)
    torch.testing.assert_close(fresh, own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", ["class", None])
def test_a_fresh_tosa_of_the_class_row_is_its_control(queries: Literal["class"] | None, images: Tensor) -> None:
    with pytest.warns(ts.TokensieveWarning, match="score='class'"), torch.no_grad():
        fresh = ts.apply(tiny(), ts.ToSA(keep=0.5, queries=queries))(images)
        control = ts.apply(tiny(), ts.ToSA(keep=0.5, score="class"))(images)
    torch.testing.assert_close(fresh, control, rtol=0, atol=1e-12)
