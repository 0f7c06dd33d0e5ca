"""IPCV against plain loops on a whole tiny ViT in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.harness import DEPTH, HEADS, PATCHES, tiny
from tests.helpers.references.plain import Reducer, Run, vit


def ipcv(layer: int, attentions: int, keep: float, neighbours: int) -> tuple[Reducer, Reducer]:
    """What to do between attention and MLP, and before a block (also behind the last)."""
    sites = range(layer, min(layer + attentions, DEPTH))
    states: dict[int, Tensor] = {}
    stay: list[int] = []
    follows: dict[int, list[int]] = {}

    def before(run: Run, block: int) -> None:
        if block <= layer:
            states[block] = run.x[1:].clone()
        if block == layer:
            _choose()
        elif layer < block <= sites[-1] or block == DEPTH:
            _bring_back(run)

    def _choose() -> None:
        state = states[layer]
        moved = [math.dist(now.tolist(), then.tolist()) for now, then in zip(state, states[layer - 1], strict=True)]
        count = math.ceil(round(keep * len(moved), 6))
        stay[:] = sorted(sorted(range(len(moved)), key=lambda i: -moved[i])[:count])
        follows.clear()
        for i in set(range(len(moved))) - set(stay):
            near = sorted(stay, key=lambda j: math.dist(state[i].tolist(), state[j].tolist()))
            follows[i] = near[:neighbours]

    def _bring_back(run: Run) -> None:
        now = dict(zip(stay, run.x[1:], strict=True))
        state = states[layer]
        for i, near in follows.items():
            now[i] = state[i] + torch.stack([now[j] - state[j] for j in near]).mean(dim=0)
        run.x = torch.stack([run.x[0], *[now[i] for i in range(PATCHES)]])
        run.members = [[i] for i in range(PATCHES)]

    def middle(run: Run, block: int) -> None:
        if block in sites:
            run.x = torch.stack([run.x[0], *[run.x[i + 1] for i in stay]])
            run.members = [[i] for i in stay]

    return middle, before


@pytest.mark.parametrize(
    ("keep", "layer", "attentions", "neighbours"),
    [
        (0.3, 1, 4, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.5, 2, 2, 10), (0.1, 3, 1, 1), (0.9, 2, 9, 10))),
    ],
)
def test_ipcv(images: Tensor, keep: float, layer: int, attentions: int, neighbours: int) -> None:
    model = ts.apply(tiny(), ts.IPCV(keep=keep, layer=layer, attentions=attentions, neighbours=neighbours))
    middle, before = ipcv(layer, attentions, keep, neighbours)
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    stages = [(stage.attended, stage.processed) for stage in ts.trace(model, images).stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        wanted, whole, run = vit(state, image, HEADS, DEPTH, middle=middle, before=before, last=before)
        assert run.counts == stages
        torch.testing.assert_close(tokens[number], whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, "a share in"),
        ({"layer": 0}, "layer must be 1 or more"),
        ({"attentions": 0}, "attentions must be 1 or more"),
        ({"neighbours": 0}, "neighbours must be 1 or more"),
        ({"layer": DEPTH}, "layer must leave a block behind it"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ts.TokensieveError, match=says):
        ts.apply(tiny(), ts.IPCV(**options))


def test_no_method_moves_tokens_that_follow_others() -> None:
    with pytest.raises(ts.TokensieveError, match="tome"):
        ts.apply(tiny(), "ipcv:layer=1:attentions=2+tome:r=4")
