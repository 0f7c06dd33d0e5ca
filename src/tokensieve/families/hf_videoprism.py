"""transformers' ``videoprism``: the encoder of its frames, whose attention caps its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.pairs import Pairs
from tokensieve.attention.tap import Tap
from tokensieve.families._halves import Halves, behind
from tokensieve.families._layout import Grid
from tokensieve.families._modules import refuse_listeners
from tokensieve.families._transformers import TransformersFamily, both, heads_by_layers


class HfVideoPrism(TransformersFamily):
    """The spatial blocks of transformers' VideoPrism: each frame is an image, and frames lose as many tokens. They are
    whole again for the temporal blocks, where every place attends along time.

    Capped logits are a map, as in the model's own attention.
    """

    name = "hf-videoprism"
    description = "transformers VideoPrism, in its frames"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.videoprism.modeling_videoprism.VideoPrismLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("dropout",),
            norm2="layernorm_after",
            behind2=("dropout",),
        )
    }
    images: ClassVar[str | None] = "pixel_values_videos"
    in_parts = True
    biased = True

    def matches(self, module: nn.Module) -> bool:
        blocks = getattr(module, "spatial_layers", None)
        return isinstance(blocks, nn.ModuleList) and len(blocks) > 0 and all(map(self.is_block, blocks))

    def block_list(self, owner: nn.Module) -> nn.ModuleList:
        return owner.spatial_layers  # type: ignore[return-value]

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        config: Any = owner.config
        return config.num_channels, *both(config.image_size)

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        config: Any = owner.config
        _, height, width = config.tubelet_size
        return height, width

    def grid(self, owner: nn.Module) -> Grid:
        _, height, width = self.input_size(owner)
        rows, columns = self.patch_size(owner)
        return height // rows, width // columns

    def sample_shape(self, owner: nn.Module) -> tuple[int, ...]:
        config: Any = owner.config
        return (config.num_frames, *self.input_size(owner))

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        own, halves = block, self.halves(block)
        attention: Any = own.attention
        normed = self.attention_input(block, x)
        update = attention(normed, **kwargs)[0] if tap.as_given else _capped(attention, normed, tap)
        return halves.sum(x, behind(block, update, halves.behind1))


def _capped(attention: Any, x: Tensor, tap: Tap) -> Tensor:
    """What ``attention`` answers to ``x`` (B, L, C), through a kernel that is told what the cap changes."""
    refuse_listeners(attention)
    query, key, value = heads_by_layers(attention, x)
    cap, between = attention.attn_logit_softcapping, None
    if cap is not None:
        logits = query @ key.transpose(2, 3) * attention.scaling
        between = torch.tanh(logits / cap) * cap - logits
        tap.pairs = Pairs(None, 0)
    dropout = attention.attention_dropout if attention.training else 0.0
    with tap:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=between, dropout_p=dropout, scale=attention.scaling
        )
    return attention.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
