"""transformers' ``eomt`` and ``eomt_dinov3``: queries join the patches in front of the last blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily
from tokensieve.families.hf_dinov2 import SCALED
from tokensieve.families.hf_dinov3 import ROTARY, rotary_of

HERE = "transformers.models"


class HfEoMT(TransformersFamily):
    """The blocks of transformers' EoMT in front of its queries. Those behind read every patch for the masks: all
    tokens are back in front of them."""

    name = "hf-eomt"
    description = "transformers EoMT, on DINOv2 and DINOv3, up to where its queries join"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.eomt.modeling_eomt.EomtLayer": SCALED,
        f"{HERE}.eomt_dinov3.modeling_eomt_dinov3.EomtDinov3Layer": ROTARY,
    }

    def blocks(self, owner: nn.Module) -> list[nn.Module]:
        config: Any = owner.config
        found = super().blocks(owner)
        return found[: len(found) - config.num_blocks]

    def refuse(self, owner: nn.Module) -> str | None:
        if not self.blocks(owner):
            return "its queries join in front of the first block, and behind them every patch is read"
        return super().refuse(owner)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return rotary_of(kwargs, positions)
