"""What transformers' encoders of maps have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokensieve.families._layout import Layout
from tokensieve.families._maps import MapFamily
from tokensieve.families._transformers import TransformersFamily, heads_by_layers


class HfMaps(MapFamily, TransformersFamily):
    """Encoders of transformers whose blocks are on maps, without tokens in front. Their attentions drop nothing."""

    def layout(self, owner: nn.Module) -> Layout:
        found = TransformersFamily.layout(self, owner)
        return replace(found, prefix=0, class_token=False, windowed=self.windowed(owner))


class HfLayeredMaps(HfMaps):
    """Those whose attention has a layer each for queries, keys, values and its answer."""

    def heads(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return heads_by_layers(attention, x)

    def projected(self, attention: Any, x: Tensor) -> Tensor:
        return attention.o_proj(x)  # type: ignore[no-any-return]

    def dropout(self, attention: Any) -> float:
        return attention.attention_dropout  # type: ignore[no-any-return]
