"""timm's ``beit``: BEiT and BEiT v2, with a relative position bias for each pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tokensieve.families._halves import Halves
from tokensieve.families._timm import TimmFamily


class TimmBeit(TimmFamily):
    """The blocks of timm's BEiT. A token keeps the relative positions of the patch whose place it has."""

    name = "timm-beit"
    description = "timm beit: BEiT, BEiT v2"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "timm.models.beit.Block": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("gamma_1", "drop_path1"),
            norm2="norm2",
            behind2=("gamma_2", "drop_path2"),
            arguments=("shared_rel_pos_bias",),
            first=True,
        )
    }
    biased = True
