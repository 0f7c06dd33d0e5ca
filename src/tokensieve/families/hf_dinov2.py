"""transformers' ``dinov2`` and its like: DINOv2 with and without registers, Depth Anything, C-RADIO, TIPSv2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily

SCALED = Halves(
    norm1="norm1",
    attention="attention",
    behind1=("layer_scale1", "drop_path"),
    norm2="norm2",
    behind2=("layer_scale2", "drop_path"),
)
HERE = "transformers.models"


class HfDinov2(TransformersFamily):
    """The blocks of transformers' DINOv2 and of the models with its code."""

    name = "hf-dinov2"
    description = "transformers DINOv2, with registers too, Depth Anything, C-RADIO, TIPSv2"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.dinov2.modeling_dinov2.Dinov2Layer": SCALED,
        f"{HERE}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": SCALED,
        f"{HERE}.radio.modeling_radio.RadioLayer": SCALED,
        f"{HERE}.tipsv2.modeling_tipsv2.Tipsv2VisionLayer": SCALED,
    }

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """DINOv2's classifier reads the class token and the mean of the patches."""
        heads = (getattr(module, "classifier", None) for module in model.modules())
        width: int = owner.config.hidden_size  # type: ignore[union-attr, assignment]
        layers = (layer for head in heads if isinstance(head, nn.Module) for layer in head.modules())
        return any(getattr(layer, "in_features", None) == 2 * width for layer in layers)
