"""transformers' ``internvl`` vision tower, with LayerScale and, in large models, norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

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
