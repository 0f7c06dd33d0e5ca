"""transformers' ``gemma4`` tower: rotary positions in two axes, norms in front of each half and behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Grid
from tokensieve.families._transformers import TransformersFamily
from tokensieve.ops.rows import take_rows

SIDE = 4  # places that patches are pooled to, along each side of the image that stands for others


class HfGemma4(TransformersFamily):
    """The blocks of Gemma 4's tower, which its likes have as well, on rows of patches (B, N, D) and their positions.

    The tower pools the patches of each place behind its blocks, where all are back.
    """

    name = "hf-gemma4"
    description = "transformers Gemma 4's tower, in DiffusionGemma and EmbeddingGemma 2 as well"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.gemma4.modeling_gemma4.Gemma4VisionEncoderLayer": Halves(
            norm1="input_layernorm",
            attention="self_attn",
            behind1=("post_attention_layernorm",),
            norm2="pre_feedforward_layernorm",
            behind2=("post_feedforward_layernorm",),
            arguments=("position_embeddings", "attention_mask", "position_ids"),
            first=True,
        )
    }

    def grid(self, owner: nn.Module) -> Grid:
        return (self._side(owner) ** 2,)  # of no known rows and columns

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        rows, columns = self.patch_size(owner)
        return 3, self._side(owner) * rows, self._side(owner) * columns

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        return None

    def example(self, owner: nn.Module) -> dict[str, Any]:
        weight = next(p for p in owner.parameters() if p.dim() == 2)
        side = torch.arange(self._side(owner), device=weight.device)
        generator = torch.Generator().manual_seed(0)
        values = torch.rand(1, len(side) ** 2, weight.shape[1], generator=generator)
        return {"pixel_values": values.to(weight), "pixel_position_ids": torch.cartesian_prod(side, side).flip(1)[None]}

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        angles = tuple(take_rows(angle, positions) for angle in kwargs["position_embeddings"])
        return {**kwargs, "position_embeddings": angles, "position_ids": take_rows(kwargs["position_ids"], positions)}

    def _side(self, owner: nn.Module) -> int:
        config: Any = owner.config
        return SIDE * int(config.pooling_kernel_size)
