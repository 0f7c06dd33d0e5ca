"""timm's ``vision_transformer_relpos``: ViTs with a relative position bias for each pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from tokensieve.families._family import BlockMacs, linear_macs
from tokensieve.families._halves import Halves
from tokensieve.families._timm import TimmFamily

HERE = "timm.models.vision_transformer_relpos"


class TimmRelPos(TimmFamily):
    """The blocks of timm's vision_transformer_relpos.py, norms before each half or behind it."""

    name = "timm-relpos"
    description = "timm vision_transformer_relpos"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.RelPosBlock": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("ls1", "drop_path1"),
            norm2="norm2",
            behind2=("ls2", "drop_path2"),
            arguments=("shared_rel_pos",),
            first=True,
        ),
        f"{HERE}.ResPostRelPosBlock": Halves(
            norm1="",
            attention="attn",
            behind1=("norm1", "drop_path1"),
            norm2="",
            behind2=("norm2", "drop_path2"),
            arguments=("shared_rel_pos",),
            first=True,
        ),
    }
    biased = True

    def macs(self, block: Any) -> BlockMacs:
        macs, bias = super().macs(block), block.attn.rel_pos
        own = 0 if bias is None else linear_macs(bias)  # of the relative positions, whatever the tokens
        return replace(macs, attention_linear=macs.attention_linear - own)
