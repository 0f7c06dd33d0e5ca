"""What transformers' encoders of maps have in common."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tokensieve.families._layout import Layout
from tokensieve.families._maps import MapFamily
from tokensieve.families._transformers import TransformersFamily


class HfMaps(MapFamily, TransformersFamily):
    """Encoders of transformers whose blocks are on maps, without tokens in front. Their attentions drop nothing."""

    def layout(self, owner: nn.Module) -> Layout:
        found = TransformersFamily.layout(self, owner)
        return replace(found, prefix=0, class_token=False, windowed=self.windowed(owner))
