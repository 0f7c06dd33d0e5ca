"""ImagePiece's backbone (arXiv 2412.16491), a reconstruction: a plain ViT behind a convolutional stem."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import ConvNormAct, HybridEmbed
from timm.models import VisionTransformer, build_model_with_cfg, register_model
from torch import nn

from tokensieve.prototype.backbones._defaults import untrained_cfgs

STEM_DEPTH = 4


def conv_stem(in_chans: int, embed_dim: int) -> nn.Sequential:
    """Four 3×3 convolutions of stride 2, each with batch norm and ReLU: (B, C, H, W) to (B, D, H/16, W/16).

    Channels double up to ``embed_dim``, as in "Early Convolutions Help Transformers See Better" (arXiv 2106.14881).
    """
    channels = [in_chans, *(embed_dim >> halvings for halvings in range(STEM_DEPTH - 1, -1, -1))]
    return nn.Sequential(*(ConvNormAct(channels[i], channels[i + 1], 3, stride=2) for i in range(STEM_DEPTH)))


default_cfgs = untrained_cfgs(
    "imagepiece",
    ("tiny", "small"),
    fixed_input_size=True,
    first_conv="patch_embed.backbone.0.conv",
    paper_ids="arXiv:2412.16491",
)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> VisionTransformer:
    """timm's ViT of DeiT's sizes whose patches come from the stem and a 1×1 convolution, so that they overlap.

    Our choice: the channels of the stem, and that the ViT keeps all 12 blocks.
    """
    stem = conv_stem(kwargs.get("in_chans", 3), kwargs["embed_dim"])
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        variant,
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        embed_layer=partial(HybridEmbed, backbone=stem),
        **{"patch_size": 1, "depth": 12, **kwargs},
    )
    return model


@register_model
def imagepiece_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Tiny behind a convolutional stem. Use with the method ImagePiece, or with any other."""
    return _create("imagepiece_tiny", pretrained, {"embed_dim": 192, "num_heads": 3, **kwargs})


@register_model
def imagepiece_small(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Small behind a convolutional stem. Use with the method ImagePiece, or with any other."""
    return _create("imagepiece_small", pretrained, {"embed_dim": 384, "num_heads": 6, **kwargs})
