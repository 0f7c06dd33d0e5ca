"""open_clip's vision tower; the text tower is left as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, Family, linear_macs
from tokensieve.families._layout import Layout
from tokensieve.families._modules import norm_of, through
from tokensieve.families._multihead import multihead, refusal
from tokensieve.ops.norm import Norm

HERE = "open_clip.transformer"


class OpenCLIP(Family):
    """The blocks of open_clip's VisionTransformer. Towers that it takes from timm are timm's families."""

    name = "open-clip"
    description = "open_clip VisionTransformer: CLIP, CoCa, and their like"
    block_types = (f"{HERE}.ResidualAttentionBlock", f"{HERE}.CustomResidualAttentionBlock")
    images = "x"

    def matches(self, module: nn.Module) -> bool:
        blocks = getattr(getattr(module, "transformer", None), "resblocks", None)
        listed = isinstance(blocks, nn.ModuleList) and len(blocks) > 0
        return listed and hasattr(module, "conv1") and all(map(self.is_block, blocks))  # type: ignore[arg-type]

    def block_list(self, owner: nn.Module) -> nn.ModuleList:
        model: Any = owner
        return model.transformer.resblocks  # type: ignore[no-any-return]

    def refuse(self, owner: nn.Module) -> str | None:
        block: Any = self.blocks(owner)[0]
        if getattr(block.attn, "logit_scale", None) is not None:
            return "its attention is of cosines, computed without the fused kernel, where methods read it"
        return refusal(block.attn)

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = ("k_x", "v_x", "attn_mask") if isinstance(block.attn, nn.MultiheadAttention) else ("attn_mask",)
        given = {**kwargs, **dict(zip(names, args, strict=False))}
        # Keys and values of the tokens themselves; a mask is refused by its name.
        return {name: value for name, value in given.items() if value is not None or name == "attn_mask"}

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        blocks = self.blocks(owner)
        attention: Any = blocks[0].attn
        rows, columns = model.grid_size
        return Layout(len(blocks), model.conv1.out_channels, attention.num_heads, 1, True, (rows, columns))

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        model: Any = owner
        height, width = model.image_size
        return model.conv1.in_channels, height, width

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        model: Any = owner
        height, width = model.patch_size
        return height, width

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        own: Any = owner
        return own.pool_type == "avg" or own.attn_pool is not None

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        normed = block.ln_1(x)
        if isinstance(block.attn, nn.MultiheadAttention):
            return x + through(multihead(block.attn, normed), block.ls_1)
        return x + through(block.attn(normed), block.ln_attn, block.ls_1)

    def attention_input(self, block: Any, x: Tensor) -> Tensor:
        return block.ln_1(x)  # type: ignore[no-any-return]

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.mlp_behind_norm(block, x, block.ln_2(x))

    def mlp_norm(self, block: Any) -> Norm | None:
        return norm_of(block.ln_2)

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        return x + through(block.mlp(normed), block.ls_2)

    def macs(self, block: Any) -> BlockMacs:
        attention = block.attn
        linear = attention.in_proj_weight.numel() + linear_macs(attention)
        return BlockMacs(linear, linear_macs(block.mlp), block.ln_1.normalized_shape[0])
