"""Small towers of other libraries, called as their users call them: what they take, and every tensor they answer with.

A registered family has a line here or in ``models.FACTORIES``, whose models have timm's interface as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.models import liven
from tokensieve.families._locate import family_of, list_families

SIDE = 64  # 4 × 4 patches of 16
FRAMES = 4
Factory = Callable[[], nn.Module]


def hf(name: str, config: str, **changes: Any) -> Factory:
    """A model of transformers with 4 blocks of 48 channels and 3 heads, on images of 64 pixels."""

    def make() -> nn.Module:
        import transformers

        sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
        sizes |= {"intermediate_size": 96, "image_size": SIDE, "patch_size": 16, **changes}
        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        return model

    return make


def of_timm(name: str, **changes: Any) -> Factory:
    """A model of timm with 3 blocks."""

    def make() -> nn.Module:
        import timm

        sizes: dict[str, Any] = {"img_size": SIDE, "depth": 3, "embed_dim": 48, "num_heads": 3}
        return timm.create_model(name, **{**sizes, **changes})  # type: ignore[no-any-return]

    return make


def torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIDE, 16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10)


def open_clip(**changes: Any) -> Factory:
    def make() -> nn.Module:
        from open_clip.transformer import VisionTransformer

        tower: nn.Module = VisionTransformer(SIDE, 16, 48, 3, 3, 2.0, output_dim=32, **changes)
        return tower

    return make


RELATIVE = {
    "use_relative_position_bias": True,
    "use_shared_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
}
VIDEO = {"num_frames": FRAMES, "tubelet_size": 2}
TOWERS: dict[str, dict[str, Factory]] = {
    "hf-clip": {
        "clip": hf("CLIPVisionModel", "CLIPVisionConfig"),
        "siglip": hf("SiglipVisionModel", "SiglipVisionConfig"),
        "metaclip": hf("MetaClip2VisionModel", "MetaClip2VisionConfig"),
        "owlv2": hf("Owlv2VisionModel", "Owlv2VisionConfig"),
        "aimv2": hf("Aimv2VisionModel", "Aimv2VisionConfig"),
        "idefics3": hf("Idefics3VisionTransformer", "Idefics3VisionConfig"),
        "blip-2": hf("Blip2VisionModel", "Blip2VisionConfig"),
    },
    "hf-dinov3": {
        "dinov3": hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2),
        "dinov3-backbone": hf("DINOv3ViTBackbone", "DINOv3ViTConfig", out_indices=[1, 3]),
        "sapiens2": hf("Sapiens2Model", "Sapiens2Config"),
    },
    "hf-beit": {"beit": hf("BeitForImageClassification", "BeitConfig", **RELATIVE)},
    "hf-data2vec": {"data2vec": hf("Data2VecVisionForImageClassification", "Data2VecVisionConfig", **RELATIVE)},
    "hf-internvl": {"internvl": hf("InternVLVisionModel", "InternVLVisionConfig", use_qk_norm=True)},
    "hf-mlcd": {"mlcd": hf("MLCDVisionModel", "MLCDVisionConfig")},
    "hf-eomt": {
        "eomt": hf("EomtForUniversalSegmentation", "EomtConfig", num_blocks=1, num_queries=5),
        "eomt-dinov3": hf("EomtDinov3ForUniversalSegmentation", "EomtDinov3Config", num_blocks=1, num_queries=5),
    },
    "hf-yolos": {
        "yolos": hf(
            "YolosForObjectDetection",
            "YolosConfig",
            image_size=[SIDE, SIDE],
            num_detection_tokens=5,
            use_mid_position_embeddings=False,
        )
    },
    "hf-vitpose": {
        "vitpose": hf("VitPoseBackbone", "VitPoseBackboneConfig", image_size=[SIDE, SIDE], patch_size=[16] * 2)
    },
    "hf-vivit": {"vivit": hf("VivitModel", "VivitConfig", num_frames=FRAMES, tubelet_size=[2, 16, 16])},
    "hf-videomae": {"videomae": hf("VideoMAEForVideoClassification", "VideoMAEConfig", **VIDEO)},
    "hf-vjepa2": {
        "vjepa2": hf(
            "VJEPA2ForVideoClassification", "VJEPA2Config", crop_size=SIDE, frames_per_clip=FRAMES, tubelet_size=2
        )
    },
    "timm-beit": {"beit": of_timm("beit_base_patch16_224", init_values=0.1)},
    "timm-relpos": {
        "relpos": of_timm("vit_relpos_base_patch16_224"),
        "class-token": of_timm("vit_relpos_base_patch16_cls_224"),
        "shared": of_timm("vit_srelpos_small_patch16_224"),
        "post-norm": of_timm("vit_relpos_base_patch16_rpn_224"),
    },
    "timm-deepseek": {"deepseek": of_timm("deepseek_vit_412m", patch_size=16)},
    "timm-gemma4": {"gemma4": of_timm("gemma4_vit_167m", head_dim=16, intermediate_size=96)},
    "timm-eva": {"qwen3": of_timm("qwen3_vit_88m")},
    "timm-vit": {
        "differential": of_timm("vit_dwee_patch16_reg1_gap_256"),
        "naflex": of_timm("naflexvit_base_patch16_gap"),
        "hybrid": of_timm("vit_tiny_r_s16_p8_224", img_size=128),
    },
    "hf-vit": {"vit-mae": hf("ViTMAEModel", "ViTMAEConfig", image_size=128), "pixio": hf("PixioModel", "PixioConfig")},
    "hf-dinov2": {"radio": hf("RadioModel", "RadioConfig", max_img_size=128)},
    "torchvision-vit": {"vit": torchvision},
    "open-clip": {
        "clip": open_clip(),
        "scaled": open_clip(ls_init_value=0.1, scale_attn=True, block_type="custom", qk_norm=True),
        "attentive": open_clip(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    },
}
TOWERS = {family: towers for family, towers in TOWERS.items() if list_families()[family].lacking() is None}
# Families of towers that are called with more than images, and where they are tested.
ELSEWHERE = {"hf-packed": "tests/families/test_packed.py"}
ELSEWHERE = {family: file for family, file in ELSEWHERE.items() if list_families()[family].lacking() is None}
NAMES = [(family, name) for family, towers in TOWERS.items() for name in towers]


@cache
def _built(family: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    return liven(TOWERS[family][name]()).eval()


def tower(family: str, name: str) -> nn.Module:
    """A fresh copy of a small tower, dense, in eval mode, the same weights every time."""
    return copy.deepcopy(_built(family, name))


def inputs(model: nn.Module, count: int = 3) -> Tensor:
    """(count, …) images or clips of the size that ``model`` is for, every one another."""
    located = family_of(model)
    shape = located.family.sample_shape(located.owner)
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))[:count]


def answers(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Every tensor that ``model`` answers with, in their order."""
    torch.manual_seed(3)  # ViT-MAE shuffles
    with torch.no_grad():
        return tensors(model(x))


def tensors(answer: Any) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer]
    parts = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
