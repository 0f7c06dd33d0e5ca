"""transformers' ``dinov2``: DINOv2 with and without registers, as a model, as a backbone, inside Depth Anything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, linear_macs
from tokensieve.families._modules import norm_of
from tokensieve.families._reading import Reader, Reading
from tokensieve.families._transformers import TransformersFamily
from tokensieve.ops.norm import Norm


class HfDinov2(TransformersFamily):
    """The blocks of transformers' DINOv2."""

    name = "hf-dinov2"
    description = "transformers DINOv2, with registers too, Depth Anything"
    block_types = (
        "transformers.models.dinov2.modeling_dinov2.Dinov2Layer",
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer",
    )
    parts = ("norm1", "attention", "layer_scale1", "drop_path", "norm2", "mlp", "layer_scale2")

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        update, _ = block.attention(block.norm1(x), **kwargs)
        return block.drop_path(block.layer_scale1(update)) + x  # type: ignore[no-any-return]

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.mlp_behind_norm(block, x, block.norm2(x))

    def mlp_norm(self, block: Any) -> Norm | None:
        return norm_of(block.norm2)

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(normed))) + x  # type: ignore[no-any-return]

    def macs(self, block: Any) -> BlockMacs:
        attention = block.attention
        width = attention.num_attention_heads * attention.head_dim
        return BlockMacs(linear_macs(attention), linear_macs(block.mlp), width)

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """DINOv2's classifier reads the class token and the mean of the patches."""
        heads = (getattr(module, "classifier", None) for module in model.modules())
        width: int = owner.config.hidden_size  # type: ignore[union-attr, assignment]
        layers = (layer for head in heads if isinstance(head, nn.Module) for layer in head.modules())
        return any(getattr(layer, "in_features", None) == 2 * width for layer in layers)

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        encoder: Any = owner.encoder
        if not hasattr(owner, "out_features"):
            return [Reading(encoder)]
        # A backbone asks its encoder for all of them and makes feature maps of a few; its caller may want the others.
        return [Reading(encoder, FeatureMaps(owner)), Reading(owner)]


@dataclass(eq=False)
class FeatureMaps(Reader):
    """The layers that a backbone makes feature maps of; ``out_features`` can be changed at any time."""

    backbone: Any

    def reads(self) -> Collection[int]:
        wanted = self.backbone.out_features
        return [number for number, stage in enumerate(self.backbone.stage_names) if stage in wanted]
