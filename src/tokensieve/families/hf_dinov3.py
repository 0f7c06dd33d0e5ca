"""transformers' ``dinov3_vit`` and ``sapiens2``: rotary positions on the patches, registers, LayerScale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily
from tokensieve.families.hf_dinov2 import SCALED
from tokensieve.families.timm_eva import rows_of_rope

HERE = "transformers.models"


ROTARY = replace(SCALED, arguments=("attention_mask", "position_embeddings"))


class HfDinov3(TransformersFamily):
    """The blocks of transformers' DINOv3 and of the models with its code."""

    name = "hf-dinov3"
    description = "transformers DINOv3 ViT, Sapiens 2"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayer": ROTARY,
        f"{HERE}.sapiens2.modeling_sapiens2.Sapiens2Layer": ROTARY,
    }

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return rotary_of(kwargs, positions)


def rotary_of(kwargs: dict[str, Any], positions: Tensor) -> dict[str, Any]:
    """A block's arguments with the rotary embedding of patches at ``positions`` (B, M), where there is one."""
    angles = kwargs.get("position_embeddings")
    if angles is None:
        return kwargs
    return {**kwargs, "position_embeddings": tuple(rows_of_rope(one, positions) for one in angles)}
