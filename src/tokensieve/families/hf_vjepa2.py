"""transformers' ``vjepa2``: rotary positions in three axes, worked out from each token's place in the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily


class HfVJEPA2(TransformersFamily):
    """The blocks of transformers' V-JEPA 2, on a clip (B, T, C, H, W). Its predictor is left as it is."""

    name = "hf-vjepa2"
    description = "transformers V-JEPA 2, over the whole clip"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.vjepa2.modeling_vjepa2.VJEPA2Layer": Halves(
            norm1="norm1",
            attention="attention",
            behind1=("drop_path",),
            norm2="norm2",
            behind2=("drop_path",),
            arguments=("position_mask",),
        )
    }
    images: ClassVar[str | None] = "pixel_values_videos"
    clips = True

    def matches(self, module: nn.Module) -> bool:
        return super().matches(module) and hasattr(module.embeddings, "patch_embeddings")  # the predictor's has none

    def frames(self, owner: nn.Module) -> int:
        return int(owner.config.frames_per_clip)  # type: ignore[union-attr, arg-type]

    def tubelet(self, owner: nn.Module) -> int:
        return int(owner.config.tubelet_size)  # type: ignore[union-attr, arg-type]

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        config: Any = owner.config
        return config.in_chans, config.crop_size, config.crop_size

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = super().keywords(block, args, kwargs)
        return {"position_mask": given.get("position_mask")}

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return x, None

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return {**kwargs, "position_mask": positions}

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """Its classifier attends to all tokens."""
        return "Classification" in type(model).__name__
