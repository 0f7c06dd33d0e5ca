"""Answers recorded from the authors' own code, on a small ViT of random weights in float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts
from tokensieve.methods.ats import nearest_samples


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


def test_ats() -> None:
    """create_ys and the nearest values of AdaptiveTokenSampler, adaptivetokensampling/ATS (9271257), 12 reference
    tokens. On 200 random draws of 12 to 196 scores it took the same tokens."""
    score = torch.rand(1, 24, generator=torch.Generator().manual_seed(7), dtype=torch.float64) ** 4
    assert nearest_samples(score, 11)[0].nonzero()[:, 0].tolist() == [2, 4, 8, 13, 15, 17, 19, 20, 21, 22]


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"graph": "mixed"}, [0.9570719032565035, -0.7080304507377659, -0.059609492853583725, -1.0899471231984998]),
        ({"graph": "spatial"}, [0.6388722707916727, 0.17348258316792278, -0.5631162310770824, -2.171910149312069]),
        ({"graph": "semantic"}, [1.3665248027442372, 0.23668104187670472, -0.26382522487380605, -1.4819481919269106]),
        ({"scales": True}, [1.005249980526434, -0.7212236078324481, -0.2318596007082865, -1.288003651118279]),
        ({"sparsity": 0.7}, [0.94082263354739, -0.5429119479322508, -0.3074260253274465, -1.6234260586122427]),
        (
            {"scales": True, "sparsity": 0.7},
            [0.9383628506488707, -0.4364194449013158, -0.23328991567340782, -1.6710191819534526],
        ),
    ],
)
def test_gtp(options: dict[str, Any], recorded: list[float]) -> None:
    """select (MixedAttnMax), propagate (GraphProp) and Attention of models_v3.py, Ackesnal/GTP-ViT (97a1178), in every
    block, on the graph of its forward_features: 5 tokens a block, alpha .2, 8 neighbours. At a sparsity of .6 the two
    differ: several tokens then pay nothing to themselves, rank alike, and ours go by index."""
    model, generator = vit()
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    ts.apply(model, ts.GTP(r=5, alpha=0.2, similar=8, drawn="once", **options))
    with torch.no_grad():
        same(model(x)[0], recorded)


def test_expedite() -> None:
    """TokenClusteringBlock before block 5 and TokenReconstructionBlock in front of the last norm, of mmseg/ops of
    Expedit-LargeScale-Vision-Transformer/Expedit-Segmenter (63f4066): 6 × 6 clusters, t = .02, 20 nearest."""
    model, generator = vit()
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    x = F.interpolate(x[:, :, ::8, ::8], scale_factor=8, mode="bilinear") + 0.1 * x
    ts.apply(model, ts.Expedite(keep=36 / 64, sites=(5,), sharpness=0.02, norm="l2", search="image"))
    with torch.no_grad():
        tokens = model.forward_features(x)
    same(tokens[0, 10], [-0.8503303484051612, 0.17100077336932945, -0.16696525514778238, 0.2598936290884136])


def test_cubist() -> None:
    """cume.py of 0118-999-88999-9119-725-3/cubist-dinov3 (f4cef1a), called before block 1 as cume/patch/timm.py of
    0118-999-88999-9119-725-3/CubistMerge (b8e9207) does, with one row and one column fewer. With more of them a token
    can be joined from both sides: theirs then has the value of one of the two alone."""
    model, generator = vit()
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    x = F.interpolate(x[:, :, ::8, ::8], scale_factor=8, mode="bilinear") + 0.1 * x
    ts.apply(model, ts.CubistMerge(rows=1, columns=1))
    with torch.no_grad():
        answer = model(x)
    same(answer[0], [0.3352533486726392, -0.8499760942664047, 0.41541502482415454, -1.9630797729308642])
