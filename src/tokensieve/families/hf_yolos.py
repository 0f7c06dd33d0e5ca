"""transformers' ``yolos``: detection tokens behind the patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Layout
from tokensieve.families._transformers import TransformersFamily
from tokensieve.families.hf_dpt import OLDER


class HfYOLOS(TransformersFamily):
    """The blocks of transformers' YOLOS. Detection tokens are prefix tokens that lie behind the patches."""

    name = "hf-yolos"
    description = "transformers YOLOS without positions in the middle"
    shapes: ClassVar[Mapping[str, Halves]] = {"transformers.models.yolos.modeling_yolos.YolosLayer": OLDER}

    def refuse(self, owner: nn.Module) -> str | None:
        config: Any = owner.config
        if config.use_mid_position_embeddings:
            return (
                "it adds position embeddings of all patches between its blocks (use_mid_position_embeddings), where a "
                "reduced model has fewer tokens"
            )
        return super().refuse(owner)

    def layout(self, owner: nn.Module) -> Layout:
        config: Any = owner.config
        found = super().layout(owner)
        behind = config.num_detection_tokens
        return replace(found, prefix=found.prefix + behind, behind=behind)
