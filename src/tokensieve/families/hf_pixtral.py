"""transformers' ``pixtral`` tower: images of any size in one row, kept apart by a mask, with rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.families._halves import Halves
from tokensieve.families._transformers import noise
from tokensieve.families.hf_packed import SIDE
from tokensieve.families.hf_rows import HfRows


class HfPixtral(HfRows):
    """The blocks of Pixtral's tower, which Mistral 3 and LightOnOCR have as well.

    The model's own mask keeps the images of a row apart. Where tokens are reduced each image attends by itself, which
    gives the same and asks for no mask.
    """

    name = "hf-pixtral"
    description = "transformers Pixtral's tower, in Mistral 3, LightOnOCR and others"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.pixtral.modeling_pixtral.PixtralAttentionLayer": Halves(
            norm1="attention_norm",
            attention="attention",
            norm2="ffn_norm",
            mlp=("feed_forward",),
            arguments=("attention_mask",),
            first=True,
        )
    }
    biased = True

    def example(self, owner: nn.Module) -> dict[str, Any]:
        model: Any = owner
        weight = model.patch_conv.weight
        rows, columns = self.patch_size(owner)
        return {"pixel_values": noise(weight, 1, weight.shape[1], SIDE * rows, SIDE * columns)}

    def lengths(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
        given = {**dict(zip(("pixel_values", "image_sizes"), args, strict=False)), **kwargs}
        images, sizes = given["pixel_values"], given.get("image_sizes")
        if isinstance(sizes, Tensor):
            sizes = sizes.tolist()
        rows, columns = self.patch_size(owner)
        found = [images.shape[-2:]] * len(images) if sizes is None else sizes
        return tuple((int(height) // rows) * (int(width) // columns) for height, width in found)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return {"angles": [angle[positions] for angle in kwargs["position_embeddings"]], "windows": None}

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        if "angles" in kwargs:
            return super().tapped(block, x, tap, **kwargs)
        with tap:  # the row as the model has it, with its mask
            out = getattr(block, self.halves(block).attention)(self.attention_input(block, x), **kwargs)
        return x + out[0]  # type: ignore[no-any-return]
