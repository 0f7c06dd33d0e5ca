"""transformers' ``dpt``: the ViT of its own that DPT has for depth estimation and segmentation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, linear_macs
from tokensieve.families._reading import Reader, Reading
from tokensieve.families._transformers import TransformersFamily


class HfDPT(TransformersFamily):
    """The blocks of the ViT inside transformers' DPT. With another backbone, that backbone's family serves."""

    name = "hf-dpt"
    description = "transformers DPT on its own ViT"
    block_types = ("transformers.models.dpt.modeling_dpt.DPTViTLayer",)
    parts = ("layernorm_before", "attention", "layernorm_after", "intermediate", "output")

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        return block.attention(block.layernorm_before(x), **kwargs) + x  # type: ignore[no-any-return]

    def attention_input(self, block: Any, x: Tensor) -> Tensor:
        return block.layernorm_before(x)  # type: ignore[no-any-return]

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)  # type: ignore[no-any-return]

    def macs(self, block: Any) -> BlockMacs:
        mlp = linear_macs(block.intermediate) + linear_macs(block.output)
        return BlockMacs(linear_macs(block.attention), mlp, block.attention.attention.all_head_size)

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        around = next((module for module in model.modules() if getattr(module, "dpt", None) is owner), None)
        if around is None:
            return [Reading(owner)]
        # The model around asks for all of them and hands a few to its neck; its caller may want the others.
        return [Reading(owner, NeckInputs(around)), Reading(around)]


@dataclass(eq=False)
class NeckInputs(Reader):
    """The layers that the neck of a DPT model reads."""

    model: Any

    def reads(self) -> Collection[int]:
        config = self.model.config
        indices = config.backbone_out_indices[2:] if config.is_hybrid else config.backbone_out_indices
        return [index + 1 for index in indices]
