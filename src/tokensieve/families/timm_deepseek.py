"""timm's ``deepseek_vit``: the vision tower of DeepSeek's vision-language models, with rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._timm import TimmFamily
from tokensieve.families.timm_eva import rows_of_rope


class TimmDeepseek(TimmFamily):
    """The blocks of timm's deepseek_vit.py."""

    name = "timm-deepseek"
    description = "timm deepseek_vit"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "timm.models.deepseek_vit.DeepseekVitBlock": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("drop_path1",),
            norm2="norm2",
            behind2=("drop_path2",),
            arguments=("rope",),
            first=True,
        )
    }

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        rope = kwargs.get("rope")
        return kwargs if rope is None else {**kwargs, "rope": rows_of_rope(rope, positions)}
