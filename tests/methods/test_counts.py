"""Token counts after the published sites and the published MACs of DeiT, from what a reduced DeiT-Tiny ran on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import tokensieve as ts
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import BlockCount, count
from tokensieve.methods.diffrate import LEARNED

WIDTHS = {"tiny": 192, "small": 384, "base": 768}


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224").eval()


def gmacs(blocks: tuple[BlockCount, ...], c: int) -> float:
    """The MACs of a DeiT of width ``c`` whose blocks run on these tokens, in billions."""
    cost = sum(4 * b.attended * c * c + 2 * b.attended**2 * c + 8 * b.processed * c * c for b in blocks)
    return (196 * 768 * c + 1000 * c + cost) / 1e9


@pytest.mark.parametrize(
    ("spec", "left", "published"),
    [
        ("evit:keep=0.9", {}, {"tiny": 1.09, "small": 4.02, "base": 15.40}),
        ("evit:keep=0.7", {3: 140, 6: 100, 9: 72}, {"tiny": 0.82, "small": 3.03, "base": 11.61}),
        ("evit:keep=0.5", {}, {"tiny": 0.63, "small": 2.31, "base": 8.82}),
        ("tome:r=8", {}, {"tiny": 0.92, "small": 3.42, "base": 13.10}),
        ("tome:r=13", {}, {"tiny": 0.73, "small": 2.70, "base": 10.37}),
        ("tome:r=16", {0: 181, 1: 165, 9: 37, 10: 21, 11: 11}, {"tiny": 0.62, "small": 2.29, "base": 8.77}),
        ("ppt:r=50", {3: 147, 6: 97, 9: 49}, {"tiny": 0.80, "small": 2.94, "base": 11.26}),
        ("atc:keep=0.7", {3: 138, 6: 97, 9: 68}, {"tiny": 0.81, "small": 2.98, "base": 11.42}),
        ("topk:keep=0.7", {}, {"tiny": 0.81, "small": 2.98, "base": 11.42}),
        ("topk:keep=0.5", {}, {"tiny": 0.62, "small": 2.28, "base": 8.70}),
        ("atc:keep=0.5", {3: 99, 6: 50, 9: 25}, {"tiny": 0.62, "small": 2.28, "base": 8.70}),
    ],
)
def test_published_counts_and_macs(
    deit: nn.Module, spec: str, left: dict[int, int], published: dict[str, float]
) -> None:
    blocks = count(reduce(deit, ts.parse(spec)), torch.randn(1, 3, 224, 224)).blocks
    assert {block: blocks[block].processed for block in left} == left
    assert {size: round(gmacs(blocks, WIDTHS[size]), 2) for size in published} == published


@pytest.mark.parametrize("keep", sorted(LEARNED))
def test_the_schedules_of_diffrate_have_their_macs(deit: nn.Module, keep: float) -> None:
    image = torch.randn(1, 3, 224, 224)
    share = count(reduce(deit, (ts.DiffRate(keep=keep),)), image).total / count(deit, image).total
    assert share == pytest.approx(keep, abs=0.006)
