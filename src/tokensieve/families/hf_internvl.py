"""transformers' ``internvl`` vision tower and its like: LayerScale, in large models norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily

HERE = "transformers.models"


class HfInternVL(TransformersFamily):
    """The blocks of the vision tower of transformers' InternVL, and of Qianfan-OCR."""

    name = "hf-internvl"
    description = "transformers InternVL's tower, Qianfan-OCR's"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.internvl.modeling_internvl.InternVLVisionLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("lambda_1",),
            norm2="layernorm_after",
            behind2=("dropout", "lambda_2"),
            arguments=(),
        ),
        f"{HERE}.qianfan_ocr.modeling_qianfan_ocr.QianfanOCRVisionLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("lambda_1", "drop_path1"),
            norm2="layernorm_after",
            behind2=("dropout", "lambda_2", "drop_path2"),
            arguments=(),
        ),
    }


class HfStep3(HfInternVL):
    """The blocks of Step 3.7's tower, whose patches have rotary positions in two axes and no class token in front."""

    name = "hf-step3"
    description = "transformers Step 3.7's tower"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.step3p7.modeling_step3p7.Step3p7VisionEncoderLayer": Halves(
            norm1="layernorm_before",
            attention="self_attn",
            behind1=("lambda_1",),
            norm2="layernorm_after",
            behind2=("lambda_2",),
            arguments=("attention_mask", "position_embeddings"),
        )
    }

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        return {**kwargs, "position_embeddings": tuple(angle[positions] for angle in kwargs["position_embeddings"])}
