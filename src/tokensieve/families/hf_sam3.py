"""transformers' SAM 3: an encoder of maps with windows, global blocks between them, and rotary positions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._maps import Inside
from tokensieve.families._transformers_maps import HfLayeredMaps


class HfSam3(HfLayeredMaps):
    """The blocks of transformers' SAM 3. Angles are those of each token's place in its window."""

    name = "hf-sam3"
    description = "transformers SAM 3"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.sam3.modeling_sam3.Sam3ViTLayer": Halves(
            norm1="layer_norm1",
            attention="attention",
            norm2="layer_norm2",
            behind2=("dropout",),
            arguments=(),
            first=True,
        )
    }

    def of_map(self, block: Any, attention: Any, x: Tensor) -> Tensor:
        return attention(x, block.rotary_emb(x, block.position_ids))[0]  # type: ignore[no-any-return]

    def with_positions(
        self, block: nn.Module, attention: Any, query: Tensor, key: Tensor, value: Tensor, inside: Inside
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        own: Any = block
        cos, sin = (part[0][inside.index].unsqueeze(1) for part in own.rotary_emb(query, own.position_ids))
        query, key = sys.modules[type(block).__module__].apply_rotary_pos_emb_2d(query, key, cos=cos, sin=sin)
        return query, key, value, attention.scaling
