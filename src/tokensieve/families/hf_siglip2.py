"""transformers' ``siglip2``: SigLIP on images of any shape, whose patches are padded to one number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Grid
from tokensieve.families._transformers import noise
from tokensieve.families.hf_clip import CLIP, HfCLIP


class HfSiglip2(HfCLIP):
    """The blocks of transformers' SigLIP 2 (NaFlex), CLIP's, on rows of patches (B, N, D) with a mask of padding.

    Padding takes no part once methods act: images with as many patches run together, and each loses its own number.
    """

    name = "hf-siglip2"
    description = "transformers SigLIP 2, also on images padded to one number of patches"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.siglip2.modeling_siglip2.Siglip2EncoderLayer": CLIP,
    }

    def grid(self, owner: nn.Module) -> Grid:
        config: Any = owner.config
        return (config.num_patches,)  # of no known rows and columns

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        config: Any = owner.config
        side = math.isqrt(config.num_patches) * config.patch_size
        return config.num_channels, side, side

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        return None

    def example(self, owner: nn.Module) -> dict[str, Any]:
        config: Any = owner.config
        weight = next(p for p in owner.parameters() if p.dim() > 1)
        side = math.isqrt(config.num_patches)
        return {
            "pixel_values": noise(weight, 1, side * side, config.num_channels * config.patch_size**2),
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.int64, device=weight.device),
            "spatial_shapes": torch.tensor([[side, side]], device=weight.device),
        }
