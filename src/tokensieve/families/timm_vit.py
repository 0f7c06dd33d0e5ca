"""timm's ``vision_transformer``: ViT, DeiT, DeiT III, AugReg, CLIP, SigLIP, DINOv2, registers, parallel blocks."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.families._family import BlockMacs, Family, linear_macs, own_input_size
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._modules import norm_of, through
from tokensieve.ops.norm import Norm

BLOCKS = "timm.models.vision_transformer"
DIFFERENTIAL = 3  # times the width of one map: two of queries and keys, and values of twice the width for each


def grid_of(owner: nn.Module, images: Tensor | None = None) -> tuple[int, int] | None:
    """(rows, columns) of the patch grid at the model's input size, or of ``images`` (B, C, H, W); None of packed ones.

    NaFlexVit has no ``patch_embed`` but ``embeds``, and takes images as well as rows of patches.
    """
    model: Any = owner
    if hasattr(model, "patch_embed"):
        embed = model.patch_embed
        rows, columns = embed.grid_size if images is None else embed.dynamic_feat_size(tuple(images.shape[-2:]))
        return int(rows), int(columns)
    if images is not None and images.dim() != 4:
        return None
    sides = own_input_size(owner)[1:] if images is None else images.shape[-2:]
    height, width = model.embeds.patch_size
    return int(sides[0]) // height, int(sides[1]) // width


def own_grid(owner: nn.Module) -> tuple[int, int]:
    """(rows, columns) of the patch grid at the model's input size."""
    grid = grid_of(owner)
    assert grid is not None  # only that of packed images is not known
    return grid


def has_class_token(owner: nn.Module) -> bool:
    """Whether token 0 is a class token."""
    holders = (owner, getattr(owner, "embeds", None))
    return any(getattr(holder, "cls_token", None) is not None for holder in holders)


class Kinds(NamedTuple):
    """timm's classes of blocks and of their attention, which differ in how a half is run."""

    plain: type[Any]
    res_post: type[Any]
    parallel_things: type[Any]
    parallel_scaling: type[Any]
    diff_parallel_scaling: type[Any]
    attention: type[Any]
    diff_attention: type[Any]


class TimmViT(Family):
    """The blocks of timm's vision_transformer.py, each half built from the block's own submodules.

    ``ParallelThingsBlock`` runs several attentions side by side: their heads score tokens together.
    ``ParallelScalingBlock`` has one residual for both halves: its middle is its end.
    Differential attention has two maps, of which the second is subtracted: they score tokens together as well.
    """

    name = "timm-vit"
    description = "timm vision_transformer: ViT, DeiT, CLIP, SigLIP, DINOv2, register and parallel variants"
    block_types = (
        f"{BLOCKS}.Block",
        f"{BLOCKS}.ResPostBlock",
        f"{BLOCKS}.ParallelThingsBlock",
        f"{BLOCKS}.ParallelScalingBlock",
        f"{BLOCKS}.DiffParallelScalingBlock",
    )

    @cached_property
    def kinds(self) -> Kinds:
        """Imported when the first model of this family is there, so that families are listed without timm."""
        names = (*self.block_types, "timm.layers.attention.Attention", "timm.layers.diff_attention.DiffAttention")
        places = (name.rpartition(".") for name in names)
        return Kinds._make(getattr(importlib.import_module(module), own) for module, _, own in places)

    def refuse(self, owner: nn.Module) -> str | None:
        if not hasattr(owner, "patch_embed") and not hasattr(owner, "embeds"):
            return "it has no patch_embed of timm's vision_transformer, and its images may differ in their patch grids"
        return None

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        block = model.blocks[0]
        side_by_side = len(block.attns) if isinstance(block, self.kinds.parallel_things) else 1
        return Layout(
            depth=len(model.blocks),
            dim=model.embed_dim,
            heads=self._first_attention(block).num_heads * side_by_side,
            prefix=model.num_prefix_tokens,
            class_token=has_class_token(owner),
            grid=own_grid(owner),
        )

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        return grid_of(owner, images)

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        if isinstance(block, self.kinds.res_post):
            return x + block.drop_path1(block.norm1(block.attn(x)))  # type: ignore[no-any-return]
        if isinstance(block, self.kinds.parallel_things):
            return x + torch.stack([attn(x) for attn in block.attns]).sum(dim=0)
        if isinstance(block, self.kinds.parallel_scaling):
            # Not block(x): a block with sites is a subclass whose forward is the engine's.
            return self.kinds.parallel_scaling.forward(block, x)  # type: ignore[no-any-return]
        if isinstance(block, self.kinds.diff_parallel_scaling):
            return self.kinds.diff_parallel_scaling.forward(block, x)  # type: ignore[no-any-return]
        return x + through(block.attn(block.norm1(x)), block.ls1, block.drop_path1)

    def attention_input(self, block: Any, x: Tensor) -> Tensor:
        if isinstance(block, self.kinds.res_post):
            return x
        if isinstance(block, self.kinds.parallel_things):
            return block.attns[0].norm(x)  # type: ignore[no-any-return]  # the first of several
        if isinstance(block, (self.kinds.parallel_scaling, self.kinds.diff_parallel_scaling)):
            return block.in_norm(x)  # type: ignore[no-any-return]
        return super().attention_input(block, x)

    def tapped(self, block: Any, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        # This attention does nothing with its mask but hand it to the fused kernel.
        if isinstance(block, self.kinds.plain) and tap.by_mask:
            attention = block.attn
            if type(attention) is self.kinds.attention and attention.fused_attn:
                update = attention(block.norm1(x), attn_mask=tap.mask)
                return x + through(update, block.ls1, block.drop_path1)
        return super().tapped(block, x, tap, **kwargs)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        if isinstance(block, self.kinds.plain):
            return self.mlp_behind_norm(block, x, block.norm2(x))
        if isinstance(block, self.kinds.res_post):
            return x + block.drop_path2(block.norm2(block.mlp(x)))  # type: ignore[no-any-return]
        if isinstance(block, self.kinds.parallel_things):
            return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(dim=0)
        return x  # of a ParallelScalingBlock

    def mlp_norm(self, block: Any) -> Norm | None:
        return norm_of(block.norm2) if isinstance(block, self.kinds.plain) else None

    def mlp_behind_norm(self, block: Any, x: Tensor, normed: Tensor) -> Tensor:
        return x + through(block.mlp(normed), block.ls2, block.drop_path2)

    def macs(self, block: Any) -> BlockMacs:
        if isinstance(block, self.kinds.parallel_scaling):
            projections = (block.in_proj, block.out_proj, block.attn_out_proj, block.mlp_out_proj)
            linear = sum(linear_macs(layer) for layer in projections if layer is not None)
            return BlockMacs(linear, 0, block.num_heads * block.head_dim)
        if isinstance(block, self.kinds.diff_parallel_scaling):
            linear = linear_macs(block.in_proj) + linear_macs(block.out_proj)
            return BlockMacs(linear, 0, DIFFERENTIAL * block.num_heads * block.head_dim)
        if isinstance(block, self.kinds.parallel_things):
            width = sum(attn.attn.attn_dim for attn in block.attns)  # type: ignore[union-attr, misc]
            return BlockMacs(linear_macs(block.attns), linear_macs(block.ffns), int(width))
        maps = DIFFERENTIAL if isinstance(block.attn, self.kinds.diff_attention) else 1
        width = maps * block.attn.num_heads * block.attn.head_dim
        return BlockMacs(linear_macs(block.attn), linear_macs(block.mlp), width)

    def _first_attention(self, block: Any) -> Any:
        if isinstance(block, self.kinds.parallel_things):
            return next(module for module in block.modules() if isinstance(module, self.kinds.attention))
        return getattr(block, "attn", block)
