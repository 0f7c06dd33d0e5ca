"""timm's ``vision_transformer_sam``: an encoder of maps with windows and global blocks between them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves, heads_of
from tokensieve.families._layout import Layout
from tokensieve.families._maps import Inside, MapFamily
from tokensieve.families._timm import TimmFamily
from tokensieve.families.timm_vit import own_grid


class TimmSam(MapFamily, TimmFamily):
    """The blocks of timm's vision_transformer_sam.py, with relative or rotary positions."""

    name = "timm-sam"
    description = "timm vision_transformer_sam"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "timm.models.vision_transformer_sam.Block": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("ls1", "drop_path1"),
            norm2="norm2",
            behind2=("ls2", "drop_path2"),
            arguments=(),
            first=True,
        )
    }

    def matches(self, module: nn.Module) -> bool:
        blocks = getattr(module, "blocks", None)
        return isinstance(blocks, nn.Sequential) and len(blocks) > 0 and all(map(self.is_block, blocks))

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        heads, _ = heads_of(model.blocks[0])
        windowed = self.windowed(owner)
        return Layout(len(model.blocks), model.embed_dim, heads, 0, False, own_grid(owner), windowed=windowed)

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return False  # the convolutions behind the blocks read the whole map

    def heads(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().heads(attention, x)
        return attention.q_norm(query), attention.k_norm(key), value

    def with_positions(
        self, block: nn.Module, attention: Any, query: Tensor, key: Tensor, value: Tensor, inside: Inside
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        if attention.rope is None:
            return super().with_positions(block, attention, query, key, value, inside)
        turned = sys.modules[type(attention).__module__].apply_rot_embed_cat
        angles = attention.rope.get_embed()[inside.index].unsqueeze(1)
        query, key = (turned(part, angles).type_as(value) for part in (query, key))
        return query, key, value, attention.scale

    def projected(self, attention: Any, x: Tensor) -> Tensor:
        return attention.proj_drop(attention.proj(x))  # type: ignore[no-any-return]

    def dropout(self, attention: Any) -> float:
        return attention.attn_drop.p  # type: ignore[no-any-return]
