"""The methods made for dense prediction against plain loops, on a whole tiny ViT in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.harness import DEPTH, HEADS, PATCHES, compare, tiny
from tests.helpers.references import dense as reference
from tests.helpers.references.plain import vit
from tokensieve.methods._superpixels import superpixels
from tokensieve.ops.bands import Bands


@pytest.mark.parametrize("norm", ["sum", "l2"])
@pytest.mark.parametrize("search", ["window", "image"])
@pytest.mark.parametrize(
    ("keep", "cells", "window", "nearest", "rounds"),
    [(0.49, (5, 5), 5, 20, 5), (0.3, (4, 4), 3, 4, 1), (0.02, (1, 1), 3, 1, 2)],
)
def test_expedite(
    images: Tensor,
    keep: float,
    cells: tuple[int, int],
    window: int,
    nearest: int,
    rounds: int,
    search: str,
    norm: str,
) -> None:
    method = ts.Expedite(
        keep=keep, sites=(2,), rounds=rounds, window=window, sharpness=0.1, nearest=nearest, norm=norm, search=search
    )
    model = ts.apply(tiny(), method)
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    stages = [(s.attended, s.processed) for s in ts.trace(model, images).stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        before = reference.expedite(
            (2,), (7, 7), cells, DEPTH, rounds, window, 0.1, nearest, norm, everywhere=search == "image"
        )
        wanted, whole, run = vit(state, image, HEADS, DEPTH, before=before, last=before)
        assert run.counts == stages and len(run.members) == PATCHES
        torch.testing.assert_close(tokens[number], whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("everywhere", [False, True])
def test_sharpness_follows_the_scale_of_each_image(everywhere: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 49, 6, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 30.0]).view(2, 1, 1)
    bands = Bands(7, 7, 4, 4, 2)
    _, found = superpixels(x, bands, 3, None, 5, everywhere=everywhere)
    for image in range(2):
        variance = float((x[image] - x[image].mean(dim=0)).square().sum(dim=1).mean())
        _, own = superpixels(x[image : image + 1], bands, 3, 64 / variance, 5, everywhere=everywhere)
        assert torch.equal(found.index[image : image + 1], own.index)
        torch.testing.assert_close(found.weight[image : image + 1], own.weight, rtol=1e-9, atol=1e-12)
    _, alike = superpixels(torch.ones(1, 49, 6), bands, 3, None, 5, everywhere=everywhere)
    assert alike.weight.isfinite().all()


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.04])
@pytest.mark.parametrize(("spatial", "nearest", "neighbours"), [(0.5, 48, 5), (0.0, 9, 2), (0.9, 4, 20)])
def test_ailurus(images: Tensor, keep: float, spatial: float, nearest: int, neighbours: int) -> None:
    method = ts.AiluRus(keep=keep, sites=(1,), spatial=spatial, nearest=nearest, neighbours=neighbours)
    model = ts.apply(tiny(), method)
    compare(model, images, before=reference.ailurus((1,), (7, 7), keep, spatial, nearest, neighbours))


def test_ailurus_keeps_more_where_the_image_is_busy() -> None:
    x = torch.full((1, 3, 112, 112), 0.1, dtype=torch.float64)
    x[..., 56:] = torch.randn(1, 3, 112, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = ts.trace(ts.apply(tiny(), ts.AiluRus(keep=0.4, sites=(0,))), x).tokens
    assert state is not None
    column = state.rep[0] % 7
    assert int((column >= 4).sum()) > 2 * int((column < 3).sum())


@pytest.mark.parametrize("value", ["larger", "mean"])
@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"keep": 0.75, "sites": (1,)}, ((1, 1),)),  # 7 · √.75 is 6.06
        ({"keep": (0.5, 0.75), "sites": (0, 3)}, ((2, 2), (1, 1))),  # 7 · √.5 is 4.95, 5 · √.75 4.33
        ({"keep": 0.1, "sites": (2, 3)}, ((3, 3), (2, 2))),  # never more than half: 4, then 2
        ({"rows": 0, "columns": (3, 1), "sites": (1, 4)}, ((0, 3), (0, 1))),
        ({"rows": 2, "sites": (5,)}, ((2, 1),)),
    ],
)
def test_cubist(
    images: Tensor, options: dict[str, Any], lost: tuple[tuple[int, int], ...], value: str, proportional: bool
) -> None:
    method = ts.CubistMerge(value=value, proportional=proportional, **options)
    before = reference.cubist(options["sites"], (7, 7), lost, value)
    compare(ts.apply(tiny(), method), images, before=before, log_size=proportional)


def test_cubist_on_a_grid_that_is_not_square(images: Tensor) -> None:
    model = tiny()
    model.set_input_size(img_size=(80, 112))
    ts.apply(model, ts.CubistMerge(keep=0.5, sites=(1, 2)))  # 5 × 7, 4 × 5, 3 × 4
    compare(model, images[:, :, :80], before=reference.cubist((1, 2), (5, 7), ((1, 2), (1, 1)), "larger"))
