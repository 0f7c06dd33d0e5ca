"""transformers' ``vit`` and its like: ViT, DeiT, ViT-MSN, I-JEPA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, linear_macs
from tokensieve.families._modules import norm_of
from tokensieve.families._reading import Reading
from tokensieve.families._transformers import TransformersFamily
from tokensieve.ops.norm import Norm


class HfViT(TransformersFamily):
    """The blocks of transformers' ViT and of the models with its code."""

    name = "hf-vit"
    description = "transformers ViT, DeiT, ViT-MSN, I-JEPA"
    block_types = (
        "transformers.models.vit.modeling_vit.ViTLayer",
        "transformers.models.deit.modeling_deit.DeiTLayer",
        "transformers.models.vit_msn.modeling_vit_msn.ViTMSNLayer",
        "transformers.models.ijepa.modeling_ijepa.IJepaLayer",
    )
    parts = ("layernorm_before", "attention", "dropout", "layernorm_after", "mlp")

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        update, _ = block.attention(block.layernorm_before(x), **kwargs)
        return block.dropout(update) + x  # type: ignore[no-any-return]

    def attention_input(self, block: Any, x: Tensor) -> Tensor:
        return block.layernorm_before(x)  # type: ignore[no-any-return]

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.mlp_behind_norm(block, x, block.layernorm_after(x))

    def mlp_norm(self, block: Any) -> Norm | None:
        return norm_of(block.layernorm_after)

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        return block.dropout(block.mlp(normed)) + x  # type: ignore[no-any-return]

    def macs(self, block: Any) -> BlockMacs:
        attention = block.attention
        width = attention.num_attention_heads * attention.head_dim
        return BlockMacs(linear_macs(attention), linear_macs(block.mlp), width)

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """I-JEPA has no class token: its head averages over patches."""
        return getattr(owner.embeddings, "cls_token", None) is None

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        return [Reading(owner)]
