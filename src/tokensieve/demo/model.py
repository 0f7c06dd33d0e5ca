"""The demo model: a small dense ViT for digits in clutter, with its weights in the package.

Importing this module registers `tokensieve_digits_vit` with timm.
"""

from pathlib import Path
from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from tokensieve.demo.digits import MEAN, STD

__all__ = ["WEIGHTS", "digits_vit", "tokensieve_digits_vit"]

WEIGHTS = Path(__file__).with_name("digits_vit.safetensors")
"""The packaged weights: fp16, timm's key names."""

# timm looks this name up in the module when it registers an entry point.
default_cfgs = generate_default_cfgs(
    {
        "tokensieve_digits_vit.digits": {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "input_size": (3, 112, 112),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def tokensieve_digits_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """timm's entry point: (B, 3, 112, 112) normalised images to (B, 10) logits, by way of 1 + 196 tokens.

    Depth and patch grid are those of DeiT (12 blocks, 14x14 patches), width and patch size are not
    (96 channels in 3 heads, 8 pixels). Keyword arguments go to `VisionTransformer` and override these.
    """
    architecture = {
        "img_size": 112,
        "patch_size": 8,
        "embed_dim": 96,
        "depth": 12,
        "num_heads": 3,
        "mlp_ratio": 4.0,
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "tokensieve_digits_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (3, 7, 11), "feature_cls": "getter"},
        **(architecture | kwargs),
    )
    if not pretrained:
        _start_with_waves(model)
    return model


@torch.no_grad()
def _start_with_waves(model: VisionTransformer) -> None:
    """Position embeddings of patches start as sines and cosines of row and column, from which training goes faster."""
    patches = model.patch_embed.num_patches
    if model.pos_embed is not None and model.embed_dim % 4 == 0:
        waves = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), model.embed_dim, temperature=100.0)
        model.pos_embed[0, -patches:] = 0.5 * waves


def digits_vit(pretrained: bool = True) -> nn.Module:
    """The demo model in float32 and evaluation mode, trained unless `pretrained` is false."""
    model: nn.Module = tokensieve_digits_vit(pretrained=pretrained)
    return model.eval()
