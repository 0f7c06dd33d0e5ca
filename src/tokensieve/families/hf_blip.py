"""transformers' encoders whose attention is written out and never calls the fused kernel: BLIP, GIT, FLAVA, MGP-STR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.families._halves import Halves, behind, heads_of
from tokensieve.families._modules import refuse_listeners
from tokensieve.families._transformers import TransformersFamily, noise
from tokensieve.families.hf_clip import CLIP
from tokensieve.families.hf_dpt import OLDER
from tokensieve.families.hf_packed import named

HERE = "transformers.models"
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class HfBlip(TransformersFamily):
    """The blocks of BLIP's tower and of GIT's.

    Where a method acts, and from there on, the fused kernel computes the attention out of the model's own projections.
    Before, and where nothing acts, the block runs as it was written, bit for bit.
    """

    name = "hf-blip"
    description = "transformers BLIP, GIT's tower, whose attention is written out"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.blip.modeling_blip.BlipEncoderLayer": replace(CLIP, arguments=(), first=False),
        f"{HERE}.git.modeling_git.GitVisionEncoderLayer": CLIP,
    }
    in_parts = True

    def example(self, owner: nn.Module) -> dict[str, Any]:
        """An image for the tower alone: models around it say that they take images and ask for words as well."""
        return {"pixel_values": noise(next(owner.parameters()), 1, *self.sample_shape(owner))}

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        halves, normed = self.halves(block), self.attention_input(block, x)
        attention = getattr(block, halves.attention)
        if tap.as_given:
            update = attention(normed, **kwargs)[0]
        else:
            refuse_listeners(attention)
            with tap:
                update = fused(attention, normed)
        return halves.sum(x, behind(block, update, halves.behind1))


class HfFlava(HfBlip):
    """The blocks of FLAVA's image encoder and of MGP-STR, which answer with maps of attention as well."""

    name = "hf-flava"
    description = "transformers FLAVA's image encoder, MGP-STR, whose attention is written out"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.flava.modeling_flava.FlavaLayer": replace(OLDER, arguments=("attention_mask", "output_attentions")),
        f"{HERE}.mgp_str.modeling_mgp_str.MgpstrLayer": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("drop_path",),
            norm2="norm2",
            behind2=("drop_path",),
            arguments=(),
        ),
    }

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return x, None


def fused(attention: Any, x: Tensor) -> Tensor:
    """(B, L, C), what ``attention`` answers to ``x`` (B, L, C), through the fused kernel."""
    inner = getattr(attention, "attention", attention)
    heads, _ = heads_of(attention)
    if hasattr(inner, "qkv"):
        parts = inner.qkv(x).chunk(3, dim=-1)
    else:
        names = next(names for names in PROJECTIONS if hasattr(inner, names[0]))
        parts = tuple(getattr(inner, name)(x) for name in names)
    queries, keys, values = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    dropout = named(inner, "attn_drop", "dropout") if attention.training else 0.0
    share = dropout.p if isinstance(dropout, nn.Dropout) else dropout
    out = F.scaled_dot_product_attention(queries, keys, values, dropout_p=share).transpose(1, 2).flatten(2)
    if hasattr(attention, "output"):
        return attention.output(out, x)  # type: ignore[no-any-return]
    projected: Tensor = named(attention, "projection", "proj", "out_proj")(out)
    return attention.proj_drop(projected) if hasattr(attention, "proj_drop") else projected
