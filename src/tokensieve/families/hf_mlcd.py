"""transformers' ``mlcd``: CLIP's blocks with rotary positions in two axes, the class token's among them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._modules import refuse_listeners
from tokensieve.families._transformers import TransformersFamily
from tokensieve.families.hf_clip import CLIP
from tokensieve.ops.moving import behind_prefix


class HfMLCD(TransformersFamily):
    """The blocks of transformers' MLCD. Its attention takes one set of angles for all images, and is run by its parts
    where images keep different tokens."""

    name = "hf-mlcd"
    description = "transformers MLCD"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.mlcd.modeling_mlcd.MLCDEncoderLayer": replace(
            CLIP, arguments=("position_embeddings", "attention_mask")
        )
    }

    in_parts = True

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        places = behind_prefix(positions, prefix)
        return {**kwargs, "position_embeddings": [angles[places] for angles in kwargs["position_embeddings"]]}

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        angles = kwargs["position_embeddings"]
        if angles[0].dim() == 2:
            return super().attention(block, x, **kwargs)
        refuse_listeners(block.self_attn)
        attention, normed = block.self_attn, block.layer_norm1(x)
        heads = [layer(normed).unflatten(2, (attention.num_heads, -1)) for layer in (
            attention.q_proj, attention.k_proj, attention.v_proj
        )]  # fmt: skip
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        queries, keys = rotate(heads[0], heads[1], *(angle.float() for angle in angles))
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, heads[2]))
        out = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=attention.dropout if attention.training else 0.0,
            scale=attention.scale,
        )
        return x + attention.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
