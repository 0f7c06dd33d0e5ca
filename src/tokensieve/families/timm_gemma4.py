"""timm's ``gemma4_vit``: the vision tower of Gemma 4, with rotary positions in two axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves, HalvesFamily, heads_of
from tokensieve.families._layout import Layout
from tokensieve.ops.rows import take_rows


class TimmGemma4(HalvesFamily):
    """The blocks of timm's gemma4_vit.py; images that are padded to one length are refused."""

    name = "timm-gemma4"
    description = "timm gemma4_vit"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "timm.models.gemma4_vit.Gemma4Block": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("norm2", "drop_path"),
            norm2="norm3",
            behind2=("norm4", "drop_path"),
            arguments=("rope_cos", "rope_sin", "attn_mask"),
            first=True,
        )
    }
    images = "x"

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        _, height, width = self.input_size(owner)
        rows, columns = self.patch_size(owner)
        heads, _ = heads_of(self.blocks(owner)[0])
        return Layout(len(model.blocks), model.embed_dim, heads, 0, False, (height // rows, width // columns))

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        model: Any = owner
        rows, columns = model.patch_size
        return int(rows), int(columns)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        angles = {name: kwargs[name] for name in ("rope_cos", "rope_sin")}
        return {**kwargs, **{name: take_rows(value, positions) for name, value in angles.items()}}
