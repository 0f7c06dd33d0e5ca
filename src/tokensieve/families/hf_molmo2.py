"""transformers' ``molmo2`` tower: CLIP's blocks on rows of patches of one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Grid
from tokensieve.families._transformers import TransformersFamily, noise
from tokensieve.families.hf_clip import CLIP


class HfMolmo2(TransformersFamily):
    """The blocks of Molmo 2's tower, which takes the patches of an image (B, N, D) in rows of its grid."""

    name = "hf-molmo2"
    description = "transformers Molmo 2's tower"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.molmo2.modeling_molmo2.Molmo2VisionEncoderLayer": CLIP
    }

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid:
        return self.grid(owner)

    def example(self, owner: nn.Module) -> dict[str, Any]:
        model: Any = owner
        weight = model.patch_embedding.weight
        return {"pixel_values": noise(weight, 1, len(model.positional_embedding), weight.shape[1])}

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """What it pools is the mean of the patches."""
        return model is owner
