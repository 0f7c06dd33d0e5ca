"""timm's ``eva``: EVA, EVA-02, DINOv3, Perception Encoder and rotary ViTs."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, Family, linear_macs
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._modules import norm_of, through
from tokensieve.families.timm_vit import grid_of, has_class_token, own_grid
from tokensieve.ops.norm import Norm


class TimmEva(Family):
    """The blocks of timm's eva.py. Rotary embeddings come as an argument and follow the tokens that stay."""

    name = "timm-eva"
    description = "timm eva: EVA, EVA-02, DINOv3, Perception Encoder, rotary ViTs"
    block_types = ("timm.models.eva.EvaBlock", "timm.models.eva.EvaBlockPostNorm")

    @cached_property
    def post_norm(self) -> type[Any]:
        """Imported when the first model of this family is there, so that families are listed without timm."""
        kind: type[Any] = importlib.import_module("timm.models.eva").EvaBlockPostNorm
        return kind

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        return Layout(
            depth=len(model.blocks),
            dim=model.embed_dim,
            heads=model.blocks[0].attn.num_heads,
            prefix=model.num_prefix_tokens,
            class_token=has_class_token(owner),
            grid=own_grid(owner),
        )

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        return grid_of(owner, images)

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        rope = kwargs.get("rope")
        if isinstance(block, self.post_norm):
            return x + block.drop_path1(block.norm1(block.attn(x, rope=rope)))  # type: ignore[no-any-return]
        update = block.attn(block.norm1(x), rope=rope)
        if block.gamma_1 is not None:
            update = block.gamma_1 * update
        return x + through(update, block.drop_path1)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        if isinstance(block, self.post_norm):
            return x + block.drop_path2(block.norm2(block.mlp(x)))  # type: ignore[no-any-return]
        return self.mlp_behind_norm(block, x, block.norm2(x))

    def mlp_norm(self, block: Any) -> Norm | None:
        return None if isinstance(block, self.post_norm) else norm_of(block.norm2)

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        update = block.mlp(normed)
        if block.gamma_2 is not None:
            update = block.gamma_2 * update
        return x + through(update, block.drop_path2)

    def macs(self, block: Any) -> BlockMacs:
        return BlockMacs(linear_macs(block.attn), linear_macs(block.mlp), block.attn.num_heads * block.attn.head_dim)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        rope = kwargs.get("rope")
        return kwargs if rope is None else {**kwargs, "rope": rows_of_rope(rope, positions)}


def rows_of_rope(rope: Tensor, positions: Tensor) -> Tensor:
    """The rotary embedding at ``positions`` (B, M): (N, D) becomes (B, 1, M, D), (H, N, D) becomes (B, H, M, D)."""
    if rope.dim() == 2:
        return rope[positions].unsqueeze(1)
    if rope.dim() == 3:
        return rope[:, positions].transpose(0, 1)
    index = positions[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3])
    return rope.expand(positions.shape[0], -1, -1, -1).gather(2, index)
