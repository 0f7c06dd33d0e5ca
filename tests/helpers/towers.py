"""Small towers of other libraries, called as their users call them: what they take, and every tensor they answer with.

A registered family has a line here or in ``models.FACTORIES``, whose models have timm's interface as well.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.helpers.models import liven
from tokensieve.families._locate import family_of, list_families

SIDE = 64  # 4 × 4 patches of 16
FRAMES = 4
Factory = Callable[[], nn.Module]


def hf(name: str, config: str, folder: str | None = None, **changes: Any) -> Factory:
    """A model of transformers with 4 blocks of 48 channels and 3 heads, on images of 64 pixels; one that transformers
    does not show by itself is in the ``folder`` of its models."""

    def make() -> nn.Module:
        import transformers

        place: Any = transformers
        if folder is not None:
            place = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
        sizes |= {"intermediate_size": 96, "image_size": SIDE, "patch_size": 16, **changes}
        model: nn.Module = getattr(place, name)(getattr(place, config)(**sizes))
        return model

    return make


class Rows(nn.Module):
    """A tower that is called with more than images, called with these alone, and answering with a row for each.

    Packed images have 8 × 8 patches each; what else the tower is given is what its family gives it for an example.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def example(self) -> dict[str, Any]:
        """What the tower is called with, as its family says."""
        located = family_of(self.tower)
        given = located.family.example(located.owner)
        assert given is not None
        return given

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what stands for one image."""
        given = self.example()
        patches = given["pixel_values"]
        if "grid_thw" in given:
            return (64, *patches.shape[2:]) if patches.dim() == 5 else (64, *patches.shape[1:])
        if "target_sizes" in given:
            return (*patches.shape[1:3], 64 * patches.shape[2])
        return (patches.shape[1], 128, 128) if patches.dim() == 4 else tuple(patches.shape[1:])

    def forward(self, x: Tensor, **options: Any) -> Any:
        given = self.example()
        others = {name: part[:1].repeat_interleave(len(x), dim=0) for name, part in given.items()}
        others["pixel_values"] = x
        if "grid_thw" in given:
            patches = x.flatten(0, 1)
            others["pixel_values"] = patches.unsqueeze(0) if given["pixel_values"].dim() == 5 else patches
            others["grid_thw"] = torch.tensor([[1, 8, 8]] * len(x))
        if "target_sizes" in given:
            others |= {"pixel_values": torch.cat([*x], dim=-1)[None], "target_sizes": torch.tensor([[8, 8]] * len(x))}
        out = self.tower(**others, **options)
        for name, part in out.items():
            if isinstance(part, Tensor) and part.numel() % (len(x) * part.shape[-1]) == 0:
                out[name] = part.reshape(len(x), -1, part.shape[-1])
        return out


def hf_rows(name: str, config: str, **changes: Any) -> Factory:
    """A tower of transformers that packs images, as ``Rows`` calls it."""
    return lambda: Rows(hf(name, config, **changes)())


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
MUSE = {"pos_emb_height": 4, "pos_emb_width": 4, "layer_types": ["full_attention"] * 4}
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
    "hf-llama4": {
        "llama4": hf(
            "Llama4VisionModel",
            "Llama4VisionConfig",
            intermediate_size=192,
            projector_input_dim=32,
            projector_output_dim=32,
            vision_output_dim=32,
        )
    },
    "hf-eomt": {
        "eomt": hf("EomtForUniversalSegmentation", "EomtConfig", num_blocks=1, num_queries=5),
        "eomt-dinov3": hf("EomtDinov3ForUniversalSegmentation", "EomtDinov3Config", num_blocks=1, num_queries=5),
    },
    "hf-blip": {
        "blip": hf("BlipVisionModel", "BlipVisionConfig"),
        "git": hf("GitVisionModel", "GitVisionConfig"),
    },
    "hf-flava": {
        "flava": hf("FlavaImageModel", "FlavaImageConfig"),
        "mgp-str": hf("MgpstrModel", "MgpstrConfig", image_size=[SIDE, SIDE], patch_size=[16, 16]),
    },
    "hf-molmo2": {
        "molmo2": hf_rows(
            "Molmo2VisionModel", "Molmo2VisionConfig", image_size=[SIDE, SIDE], num_key_value_heads=3, head_dim=16
        )
    },
    "hf-minicpm": {
        "minicpm-v": hf_rows("MiniCPMV4_7VisionModel", "MiniCPMV4_7VisionConfig", insert_layer_id=2),
        "minicpm-ocr": hf_rows("MiniCPMOcrVisionModel", "MiniCPMOcrVisionConfig", insert_layer_id=2),
    },
    "hf-step3": {"step3": hf("Step3p7VisionModel", "Step3p7VisionConfig")},
    "hf-unlimited-ocr": {
        "unlimited-ocr": hf("UnlimitedOcrVisionEncoder", "UnlimitedOcrVisionEncoderConfig", "unlimited_ocr")
    },
    "hf-gemma4": {
        "gemma4": hf_rows("Gemma4VisionModel", "Gemma4VisionConfig", num_key_value_heads=1, head_dim=16, patch_size=4),
    },
    "hf-pixtral": {"pixtral": hf_rows("PixtralVisionModel", "PixtralVisionConfig")},
    "hf-rows": {
        "paddleocr": hf_rows("PaddleOCRVisionModel", "PaddleOCRVisionConfig"),
        "video-llama3": hf_rows("VideoLlama3VisionModel", "VideoLlama3VisionConfig"),
        "kimi": hf_rows("Kimi_K25VisionModel", "Kimi_K25VisionConfig", pos_emb_height=8, pos_emb_width=8),
        "glm-image": hf_rows("GlmImageVisionModel", "GlmImageVisionConfig", depth=4, num_heads=3),
        "hunyuan": hf_rows("HunYuanVLVisionTransformer", "HunYuanVLVisionConfig", max_image_size=128),
        "hy-v4": hf_rows("HYV4VLVisionModel", "HYV4VLVisionConfig", max_image_size=128),
        "minimax-m3": hf_rows("MiniMaxM3VLVisionModel", "MiniMaxM3VLVisionConfig"),
        "muse-glimmer": hf_rows("MuseGlimmerVisionModel", "MuseGlimmerVisionConfig", **MUSE),
        "muse-spark": hf_rows("MuseSparkVisionModel", "MuseSparkVisionConfig", **MUSE),
        "cosmos3-edge": hf_rows("Cosmos3EdgeVisionModel", "Cosmos3EdgeVisionConfig"),
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
ELSEWHERE = {
    "hf-apart": "tests/families/test_rows.py",
    "hf-lwdetr": "tests/families/test_joined.py",
    "hf-packed": "tests/families/test_packed.py",
    "hf-siglip2": "tests/families/test_padded.py",
    **dict.fromkeys(("hf-sam", "hf-sam3", "hf-vitdet", "timm-sam"), "tests/families/test_maps.py"),
    **dict.fromkeys(("hf-swin", "timm-swin"), "tests/families/test_swin.py"),
    **dict.fromkeys(("hf-timesformer", "hf-videoprism"), "tests/families/test_clips.py"),
}
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
    shape = model.shape if isinstance(model, Rows) else located.family.sample_shape(located.owner)
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


class Run(TorchFunctionMode):
    """Adds up the multiply-accumulates of linear layers, convolutions and fused attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        if func is F.scaled_dot_product_attention:
            queries, keys, values = given[:3]
            self.macs += queries.shape[:-1].numel() * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])
        elif func in (F.linear, F.conv2d, F.conv3d):
            self.macs += result.numel() * given[1][0].numel()
        return result
