"""What timm's families with blocks of named parts have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokensieve.families._halves import HalvesFamily, heads_of
from tokensieve.families._layout import Grid, Layout
from tokensieve.families.timm_vit import grid_of, has_class_token, own_grid


class TimmFamily(HalvesFamily):
    """Models of timm with ``blocks``, a ``patch_embed`` and blocks of two halves called ``attn`` and ``mlp``."""

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        return Layout(
            depth=len(model.blocks),
            dim=model.embed_dim,
            heads=heads_of(self.blocks(owner)[0])[0],
            prefix=model.num_prefix_tokens,
            class_token=has_class_token(owner),
            grid=own_grid(owner),
        )

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        return grid_of(owner, images)
