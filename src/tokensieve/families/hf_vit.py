"""transformers' ``vit`` and its like: ViT, DeiT, ViT-MSN, I-JEPA, ViT-MAE's encoder, Pixio, ViViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Grid
from tokensieve.families._transformers import TransformersFamily, both

PLAIN = Halves(
    norm1="layernorm_before",
    attention="attention",
    behind1=("dropout", "drop_path"),
    norm2="layernorm_after",
    behind2=("dropout", "drop_path"),
)
HERE = "transformers.models"


class HfViT(TransformersFamily):
    """The blocks of transformers' ViT and of the models with its code."""

    name = "hf-vit"
    description = "transformers ViT, DeiT, ViT-MSN, I-JEPA, ViT-MAE's encoder, Pixio"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.vit.modeling_vit.ViTLayer": PLAIN,
        f"{HERE}.deit.modeling_deit.DeiTLayer": PLAIN,
        f"{HERE}.vit_msn.modeling_vit_msn.ViTMSNLayer": PLAIN,
        f"{HERE}.ijepa.modeling_ijepa.IJepaLayer": PLAIN,
        f"{HERE}.vit_mae.modeling_vit_mae.ViTMAELayer": PLAIN,
        f"{HERE}.pixio.modeling_pixio.PixioLayer": PLAIN,
    }

    def grid(self, owner: nn.Module) -> Grid:
        """Of ViT-MAE only a share of the patches goes into the blocks, shuffled: these lie along one axis."""
        rows, columns = super().grid(owner)
        masked = getattr(owner.config, "mask_ratio", 0.0) if hasattr(owner.embeddings, "random_masking") else 0.0
        return (int(rows * columns * (1 - masked)),) if masked else (rows, columns)


class HfViViT(TransformersFamily):
    """The blocks of transformers' ViViT, on a clip (B, T, C, H, W)."""

    name = "hf-vivit"
    description = "transformers ViViT, over the whole clip"
    shapes: ClassVar[Mapping[str, Halves]] = {f"{HERE}.vivit.modeling_vivit.VivitLayer": PLAIN}
    clips = True

    def frames(self, owner: nn.Module) -> int:
        config: Any = owner.config
        return int(config.num_frames)

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        config: Any = owner.config
        return both(config.tubelet_size[1:])

    def tubelet(self, owner: nn.Module) -> int:
        config: Any = owner.config
        return int(config.tubelet_size[0])
