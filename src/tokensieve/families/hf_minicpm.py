"""transformers' MiniCPM-V 4.6 and 4.7 and MiniCPM-OCR: images in one row, joined four by four between two blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import noise
from tokensieve.families.hf_packed import SIDE
from tokensieve.families.hf_rows import MASKED, HfRows

# Models with this block: their folder in transformers, and the beginning of the class's name.
BLOCKS = {"minicpm_ocr": "MiniCPMOcr", "minicpmv4_6": "MiniCPMV4_6", "minicpmv4_7": "MiniCPMV4_7"}


class HfMiniCPM(HfRows):
    """The blocks of MiniCPM-V's tower in front of where it joins patches four by four, for which all are back. Those
    behind run on a quarter of the tokens, as they do without methods."""

    name = "hf-minicpm"
    description = "transformers MiniCPM-V 4.6 and 4.7, MiniCPM-OCR, up to where their towers join patches"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"transformers.models.{folder}.modeling_{folder}.{kind}VisionEncoderLayer": MASKED
        for folder, kind in BLOCKS.items()
    }

    def blocks(self, owner: nn.Module) -> list[nn.Module]:
        config: Any = owner.config
        found = super().blocks(owner)
        return found[: config.insert_layer_id + 1] if config.insert_layer_id >= 0 else found

    def example(self, owner: nn.Module) -> dict[str, Any]:
        model: Any = owner
        weight = model.embeddings.patch_embedding.weight
        height, width = weight.shape[2:]
        row = noise(weight, 1, weight.shape[1], height, SIDE * SIDE * width)
        return {"pixel_values": row, "target_sizes": torch.tensor([[SIDE, SIDE]], device=weight.device)}

    def lengths(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
        sizes = kwargs.get("target_sizes", args[1] if len(args) > 1 else None)
        return None if sizes is None else tuple(rows * columns for rows, columns in sizes.tolist())
