"""Dense models: heads on every kind of timm backbone, methods on them, sizes that are odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokensieve as ts
from tokensieve.errors import TokensieveError
from tokensieve.measure.macs import count
from tokensieve.measure.oracle import oracle
from tokensieve.models.load import share_weights
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.heads import HEADS, build_head
from tokensieve.pixels.model import PixelModel, pixel_model
from tokensieve.pixels.segmentation import Segmentation
from tokensieve.pixels.sliding import sliding, starts

SMALL: dict[str, Any] = {"img_size": (32, 48), "depth": 4, "embed_dim": 48, "num_heads": 3}
BACKBONES = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"img_size": (28, 42)}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": (28, 42)}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
}


def backbone(name: str = "vit") -> torch.nn.Module:
    model, changes = BACKBONES[name]
    return timm.create_model(model, **(SMALL | changes))


def images_for(model: PixelModel, count: int = 2) -> Tensor:
    size = model.patch_embed.img_size
    return torch.randn(count, 3, *(size or (32, 48)))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_every_head_on_every_backbone(name: str, head: str) -> None:
    model = pixel_model(backbone(name), Segmentation(classes=5), head)
    x = images_for(model)
    whole = model(x)
    assert whole.shape == (2, 5, *x.shape[-2:])
    ts.apply(model, "tome:r=1")
    reduced = model(x)
    assert reduced.shape == whole.shape and not torch.equal(reduced, whole)
    assert torch.allclose(model(x[:1]), reduced[:1], atol=1e-4)
    assert torch.equal(ts.remove(model)(x), whole)


@pytest.mark.parametrize(
    "spec", ["tosa:keep=0.5:score=own", "bat", "evit:keep=0.5", "algm", "expedite", "ailurus", "cubist"]
)
@torch.no_grad()
def test_restored_maps_have_the_dense_shapes(spec: str) -> None:
    model = pixel_model(backbone(), Depth(), "dpt")
    x = images_for(model)
    shapes = [level.shape for level in model.maps(x)]
    ts.apply(model, spec)
    assert [level.shape for level in model.maps(x)] == shapes
    depth = model(x)
    assert depth.shape == (2, 1, 32, 48)
    assert float(depth.min()) > 0 and float(depth.max()) <= 10


@torch.no_grad()
def test_a_saved_dense_model_is_the_same(tmp_path: Path) -> None:
    task = Segmentation(classes=5, ignore_index=11)
    model = ts.apply(pixel_model(backbone(), task, "segmenter"), "tome:r=1")
    ts.save(model, tmp_path / "saved")
    loaded = ts.load(tmp_path / "saved")
    assert isinstance(loaded, PixelModel) and loaded.task == task
    x = images_for(loaded)
    assert torch.equal(loaded(x), model(x))


@torch.no_grad()
def test_single_row_of_patches_and_pixels_behind_the_last_patch() -> None:
    for size, head in (((16, 80), "dpt"), ((16, 80), "segmenter"), ((37, 50), "linear")):
        model = pixel_model(timm.create_model("vit_tiny_patch16_224", **(SMALL | {"img_size": size})), Depth(), head)
        for spec in (None, "tome:r=1", "tosa:keep=0.5:score=own"):
            reduced = model if spec is None else ts.apply(share_weights(model), spec)
            assert reduced(torch.randn(1, 3, *size)).shape == (1, 1, *size)


def test_an_image_of_another_size_is_one_sentence() -> None:
    model = pixel_model(backbone(), Depth())
    with pytest.raises(TokensieveError, match=r"takes images of 32 × 48 pixels, got 33 × 47: resize them, slide"):
        model(torch.randn(1, 3, 33, 47))


@torch.no_grad()
def test_sliding_windows_cover_images_of_any_size() -> None:
    assert starts(10, 4, 3) == [0, 3, 6] and starts(11, 4, 3) == [0, 3, 6, 7] and starts(3, 4, 3) == [0]

    def mean(x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True)  # what every window says of a pixel is the same

    x = torch.rand(2, 3, 21, 34)
    for window, stride in (((8, 8), None), ((8, 16), (5, 16)), ((32, 64), None), ((21, 34), (1, 1))):
        assert torch.allclose(sliding(mean, window, stride, batch_size=3)(x), mean(x), atol=1e-6)
    model = pixel_model(backbone(), Segmentation(classes=3))
    assert sliding(model, (32, 48))(torch.randn(1, 3, 45, 77)).shape == (1, 3, 45, 77)
    with pytest.raises(TokensieveError, match="no larger than the window of 8 × 8, got 9 × 8"):
        sliding(mean, (8, 8), (9, 8))


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_oracle_gives_a_head_maps_of_full_size(head: str) -> None:
    model = pixel_model(backbone(), Segmentation(classes=3), head)
    x = images_for(model)
    for spec in ("evit:keep=0.5:sites=[1]", "tosa:keep=0.3:score=own"):
        reduced = ts.apply(share_weights(model), spec)
        free = oracle(model, count(reduced, x))
        assert free(x).shape == model(x).shape
    assert torch.equal(oracle(model, count(model, x))(x), model(x))


def test_what_a_head_costs_is_counted() -> None:
    model = pixel_model(backbone(), Segmentation(classes=5), "dpt")
    x = images_for(model, 1)
    without = count(pixel_model(backbone(), Segmentation(classes=5)), x).rest - 5 * 48 * 6
    taken = count(model, x).rest - without
    width, patches = 32, 6
    projections = 4 * 48 * width * patches
    resampled = width * width * patches * (16 + 4) + 9 * width * width * 1 * 2
    fused = sum(cells * 2 * 2 * 9 * width * width for cells in (patches * 16, patches * 4, patches, 2))
    out = (9 * width * width + 5 * width) * 64 * patches
    assert taken == projections + resampled + fused + out


def test_wrong_heads_and_tasks_are_one_sentence() -> None:
    with pytest.raises(TokensieveError, match="unknown head 'lineal', did you mean 'linear'"):
        build_head("lineal", 48, 4, 3)
    with pytest.raises(TokensieveError, match="reads 4 blocks and the model has 2"):
        build_head("dpt", 48, 2, 3)
    with pytest.raises(TokensieveError, match="2 classes or more"):
        Segmentation(classes=1)
    with pytest.raises(TokensieveError, match="--ignore-index 3 is one of the 11 classes"):
        Segmentation(classes=11, ignore_index=3)
    with pytest.raises(TokensieveError, match="0 < min_depth < max_depth"):
        Depth(max_depth=0)


@torch.no_grad()
def test_a_single_patch_has_a_depth() -> None:
    model = pixel_model(timm.create_model("vit_tiny_patch16_224", **(SMALL | {"img_size": 16})), Depth(), "dpt")
    assert ts.apply(model, "tosa:keep=0.5:score=own")(torch.randn(1, 3, 16, 16)).shape == (1, 1, 16, 16)
