"""transformers' ``beit`` and ``data2vec_vision``: ViTs with a relative position bias for each pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import TransformersFamily, tokens_in

HERE = "transformers.models"


class HfBeit(TransformersFamily):
    """The blocks of transformers' BEiT. A token keeps the relative positions of the patch whose place it has."""

    name = "hf-beit"
    description = "transformers BEiT"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.beit.modeling_beit.BeitLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("dropout", "lambda_1", "drop_path"),
            norm2="layernorm_after",
            behind2=("dropout", "lambda_2", "drop_path"),
            arguments=("attention_mask", "interpolate_pos_encoding", "resolution"),
        )
    }
    biased = True

    def attention(
        self,
        block: Any,
        x: Tensor,
        *,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        if block.relative_position_bias is not None:
            height, width = resolution
            rows, columns = height // block.patch_size, width // block.patch_size
            own = block.relative_position_bias((rows, columns), interpolate_pos_encoding, dim_size=rows * columns + 1)
            attention_mask = own if attention_mask is None else own + attention_mask
        return super().attention(block, x, attention_mask=attention_mask, **kwargs)

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return pools_by_config(model, owner)


class HfData2Vec(TransformersFamily):
    """The blocks of transformers' Data2VecVision, as BEiT's."""

    name = "hf-data2vec"
    description = "transformers Data2VecVision"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.data2vec.modeling_data2vec_vision.Data2VecVisionLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("lambda_1", "drop_path"),
            norm2="layernorm_after",
            mlp=("intermediate", "output"),
            behind2=("lambda_2", "drop_path"),
            arguments=("output_attentions", "relative_position_bias", "interpolate_pos_encoding", "resolution"),
        )
    }
    biased = True

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return x, None

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return pools_by_config(model, owner)


def pools_by_config(model: nn.Module, owner: nn.Module) -> bool:
    """Whether the classifier of ``model`` averages over the patches, as its config says."""
    config: Any = owner.config
    pooled = config.use_mean_pooling or not tokens_in(owner, ("cls_token",))
    return "Classification" in type(model).__name__ and pooled
