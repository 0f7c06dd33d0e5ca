"""transformers' ``llama4`` vision tower: rotary positions as complex numbers, the class token behind the patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._modules import refuse_listeners
from tokensieve.families._transformers import TransformersFamily
from tokensieve.tokens.form import Form


@dataclass(frozen=True)
class Behind(Form):
    """The class token behind the patches, (B, N + 1, C).

    Attributes:
        shape: of the tokens.
    """

    shape: torch.Size

    def taken(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, -1:], x[:, :-1]], dim=1)

    def given(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)


class HfLlama4(TransformersFamily):
    """The blocks of Llama 4's tower. Its attention takes one set of angles for all images, and is run by its parts
    where images keep different tokens. The tiles of a large image are images of their own."""

    name = "hf-llama4"
    description = "transformers Llama 4's tower"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.llama4.modeling_llama4.Llama4VisionEncoderLayer": Halves(
            norm1="input_layernorm",
            attention="self_attn",
            norm2="post_attention_layernorm",
            arguments=("freqs_ci", "attention_mask", "output_attentions"),
            first=True,
        )
    }
    in_parts = True

    def form(self, block: nn.Module, x: Tensor) -> Form:
        return Behind(x.shape)

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = super().keywords(block, args, kwargs)
        given.pop("output_attentions", None)  # refused where the tower is asked for them
        return given

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return (x,)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        angles = kwargs["freqs_ci"].squeeze(1)
        behind = positions.new_full((len(positions), prefix), len(angles) - 1)
        return {**kwargs, "freqs_ci": angles[torch.cat([behind, positions], dim=1)]}

    def attention(self, block: Any, x: Tensor, **kwargs: Any) -> Tensor:
        angles = kwargs["freqs_ci"]
        if angles.shape[1] == 1:  # (L, 1, D), as the model has them
            return super().attention(block, x, **kwargs)
        refuse_listeners(block.self_attn)
        attention, normed = block.self_attn, block.input_layernorm(x)
        queries, keys, values = (
            layer(normed).unflatten(2, (-1, attention.head_dim))
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = F.scaled_dot_product_attention(
            turned(queries, angles).transpose(1, 2),
            turned(keys, angles).transpose(1, 2),
            values.transpose(1, 2),
            dropout_p=attention.attention_dropout if attention.training else 0.0,
        )
        return x + attention.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """``x`` (B, L, H, 2D), pairs of neighbouring channels turned by ``angles`` (B, L, D), complex numbers of length 1,
    as Su et al. (2021, arXiv 2104.09864, equation 13) write a rotary embedding."""
    pairs = torch.view_as_complex(x.float().unflatten(3, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * angles.unsqueeze(2)).flatten(3).type_as(x)
