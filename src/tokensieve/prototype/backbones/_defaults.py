"""What the backbones have in common besides their architecture: timm's default config and how linear layers start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn


def untrained_cfgs(family: str, sizes: Sequence[str], **own: Any) -> Any:
    """timm's default configs of ``family_size`` for each size, none of which has weights.

    Args:
        family: what the names begin with.
        sizes: what they end with.
        own: what differs from family to family: ``first_conv``, ``paper_ids`` and the like.
    """
    shared = {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
    }
    return generate_default_cfgs({f"{family}_{size}.untrained": {**shared, **own} for size in sizes})


def initialise(module: nn.Module) -> None:
    """Start a linear layer as ViTs do; others are left alone."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
