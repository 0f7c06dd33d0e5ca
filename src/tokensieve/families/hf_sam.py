"""transformers' SAM: an encoder of maps with windows, global blocks between them, and relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers_maps import HfMaps
from tokensieve.tokens.form import Form, Map

HERE = "transformers.models"
SAM = Halves(norm1="layer_norm1", attention="attn", norm2="layer_norm2", arguments=(), first=True)
# Models with this block: their folder in transformers, and the name of the class.
BLOCKS = {
    "deepseek_ocr2": "DeepseekOcr2SamVisionLayer",
    "got_ocr2": "GotOcr2VisionLayer",
    "pp_formulanet": "PPFormulaNetVisionLayer",
    "sam": "SamVisionLayer",
    "sam_hq": "SamHQVisionLayer",
    "slanext": "SLANeXtVisionLayer",
    "unlimited_ocr": "UnlimitedOcrSamVisionLayer",
}


class HfSam(HfMaps):
    """The blocks of transformers' SAM, and of the models that took them over."""

    name = "hf-sam"
    description = "transformers SAM, SAM-HQ, GOT-OCR 2, DeepSeek-OCR 2 and others with SAM's encoder"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.{folder}.modeling_{folder}.{kind}": SAM for folder, kind in BLOCKS.items()
    }


class HfVitDet(HfMaps):
    """The blocks of transformers' ViTDet, whose maps have their channels first."""

    name = "hf-vitdet"
    description = "transformers ViTDet"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.vitdet.modeling_vitdet.VitDetLayer": Halves(
            norm1="norm1",
            attention="attention",
            behind1=("drop_path",),
            norm2="norm2",
            behind2=("drop_path",),
            arguments=("output_attentions",),
            first=True,
        )
    }

    def refuse(self, owner: nn.Module) -> str | None:
        blocks: list[Any] = self.blocks(owner)
        if any(block.use_residual_block for block in blocks):
            return "some of its blocks end in convolutions over the whole map (residual_block_indices of its config)"
        return super().refuse(owner)

    def form(self, block: nn.Module, x: Tensor) -> Form | None:
        return Map(x.shape, channels=1) if x.dim() == 4 else None

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return (x,)
