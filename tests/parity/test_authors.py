"""Answers recorded from the authors' own code, on a small ViT of random weights in float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts


def vit(**options: Any) -> tuple[Any, torch.Generator]:
    """Twelve blocks on 8 × 8 patches, and the generator that drew their weights."""
    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 12}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() >= 2 and "token" not in name and "pos" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5 * (3 if "qkv" in name else 1))
            else:
                parameter.copy_(float(name.endswith("weight") and parameter.dim() < 2) + 0.3 * noise)
    return model, generator


def same(answer: Tensor, recorded: list[float]) -> None:
    torch.testing.assert_close(answer[: len(recorded)], torch.tensor(recorded).double(), rtol=0, atol=1e-6)


def test_evo_vit() -> None:
    """deit/evo_deit.py of YifanXu74/Evo-ViT (4c5d9b3): EvoVisionTransformer as evo_deit_tiny sets it, no class head."""
    model, generator = vit(global_pool="avg", fc_norm=True)
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        answer = ts.apply(model, ts.EvoViT(representative=False))(x)
    same(answer[0], [1.3266512424476145, 0.0872889945623217, -0.9057118200606014, -2.058887165977981])


@pytest.mark.parametrize(
    ("threshold", "image", "lengths", "recorded"),
    [
        (0.2, 0, (17, 12), [1.4141941878513793, -1.1181039862132551, 0.7091348683453866]),
        (0.2, 2, (17, 13), [0.9583929654110532, -0.8661985134298825, 0.6755601034328149]),
        (0.5, 0, (32, 24), [-0.2713386611499429, 0.37281562168762694, 0.633255933793968]),
        (0.5, 1, (50, 37), [0.7783357878886502, -0.05714942472797877, 0.5171041325769432]),
    ],
)
def test_algm(threshold: float, image: int, lengths: tuple[int, int], recorded: list[float]) -> None:
    """conditional_pooling and turbo_matching of tue-mps/algm-segmenter (674eaa2), in blocks 0 and 4, image by image."""
    model, generator = vit()
    x = torch.randn(3, 3, 64, 64, generator=generator, dtype=torch.float64)
    x = F.interpolate(x[:, :, ::8, ::8], scale_factor=8, mode="bilinear") + 0.1 * x
    ts.apply(model, ts.ALGM(threshold=threshold, sites=(0, 4)))
    with torch.no_grad():
        same(model(x)[image], recorded)
    stages = ts.trace(model, x[image : image + 1]).stages
    assert (stages[0].processed, stages[4].processed) == lengths
