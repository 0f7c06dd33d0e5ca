"""torchvision's ``vision_transformer``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, Family, linear_macs
from tokensieve.families._layout import Layout
from tokensieve.families._modules import norm_of, through
from tokensieve.families._multihead import multihead
from tokensieve.ops.norm import Norm


class TorchvisionViT(Family):
    """The blocks of torchvision's VisionTransformer, whose attention is torch's ``nn.MultiheadAttention``."""

    name = "torchvision-vit"
    description = "torchvision VisionTransformer"
    block_types = ("torchvision.models.vision_transformer.EncoderBlock",)
    images = "x"

    def matches(self, module: nn.Module) -> bool:
        layers = getattr(getattr(module, "encoder", None), "layers", None)
        listed = isinstance(layers, nn.Sequential) and len(layers) > 0
        return listed and hasattr(module, "conv_proj") and all(map(self.is_block, layers))  # type: ignore[arg-type]

    def block_list(self, owner: nn.Module) -> nn.Sequential:
        model: Any = owner
        return model.encoder.layers  # type: ignore[no-any-return]

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        blocks = self.blocks(owner)
        side = model.image_size // model.patch_size
        attention: Any = blocks[0].self_attention
        return Layout(len(blocks), model.hidden_dim, attention.num_heads, 1, True, (side, side))

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        model: Any = owner
        return model.conv_proj.in_channels, model.image_size, model.image_size

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        model: Any = owner
        return model.patch_size, model.patch_size

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        return through(multihead(block.self_attention, block.ln_1(x)), block.dropout) + x

    def attention_input(self, block: Any, x: Tensor) -> Tensor:
        return block.ln_1(x)  # type: ignore[no-any-return]

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.mlp_behind_norm(block, x, block.ln_2(x))

    def mlp_norm(self, block: Any) -> Norm | None:
        return norm_of(block.ln_2)

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        return x + block.mlp(normed)  # type: ignore[no-any-return]

    def macs(self, block: Any) -> BlockMacs:
        attention = block.self_attention
        linear = attention.in_proj_weight.numel() + linear_macs(attention)
        return BlockMacs(linear, linear_macs(block.mlp), attention.embed_dim)
