"""transformers' ``timesformer``: attention along time at each place of the clip, then in each of its frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.families._family import BlockMacs, linear_macs
from tokensieve.families._halves import Halves, heads_of
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._modules import refuse_listeners, through
from tokensieve.families._transformers import TransformersFamily
from tokensieve.tokens.form import Form, Tubes


class HfTimesformer(TransformersFamily):
    """The blocks of transformers' TimeSformer with divided attention (Bertasius et al. 2021, arXiv 2102.05095).

    A place of the frame, with what all frames have there, is one token of T · C channels: a method takes or merges it
    in every frame at once, so that frames keep as many, and time runs through what is left of each place. Heads of all
    frames score a token together. The class token is in every frame, and is their mean.
    """

    name = "hf-timesformer"
    description = "transformers TimeSformer with divided space and time"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.timesformer.modeling_timesformer.TimesformerLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            norm2="layernorm_after",
            mlp=("intermediate", "output"),
            behind2=("drop_path",),
            arguments=("output_attentions",),
            first=True,
        )
    }
    clips = True
    in_parts = True

    def refuse(self, owner: nn.Module) -> str | None:
        config: Any = owner.config
        if config.attention_type != "divided_space_time":
            return f"its attention_type is {config.attention_type!r}: 'divided_space_time' alone is supported"
        return super().refuse(owner)

    def layout(self, owner: nn.Module) -> Layout:
        found, frames = super().layout(owner), self.frames(owner)
        return replace(found, dim=found.dim * frames, heads=found.heads * frames)

    def grid(self, owner: nn.Module) -> Grid:
        return super().grid(owner)[1:]

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        grid = super().grid_of(owner, images)
        return None if grid is None else grid[1:]

    def frames(self, owner: nn.Module) -> int:
        config: Any = owner.config
        return int(config.num_frames)

    def tubelet(self, owner: nn.Module) -> int:
        return 1

    def form(self, block: nn.Module, x: Tensor) -> Form | None:
        own: Any = block
        return Tubes(x.shape, prefix=1, frames=own.config.num_frames)

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return (x,)

    def attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        own: Any = block
        return own.layernorm_before(x.unflatten(2, (-1, own.config.hidden_size))).flatten(2)  # type: ignore[no-any-return]

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        own: Any = block
        if tap.as_given:  # the clip as the model has it, by the block's own attentions
            form = self.form(block, x)
            assert form is not None
            return form.given(self._half(own, form.taken(x), _own))
        refuse_listeners(own.attention)
        refuse_listeners(own.temporal_attention)
        return self._half(own, x, lambda attention, part: _fused(attention, part, tap, len(x)))

    def _half(self, block: Any, x: Tensor, spatial: Any) -> Tensor:
        """(B, 1 + M, T · C), ``x`` after both attentions; ``spatial`` is asked for that of the frames (B · T, 1 + M,
        C)."""
        batch, width = len(x), block.config.hidden_size
        front, places = x[:, :1, :width], x[:, 1:].reshape(-1, x.shape[2] // width, width)
        # 1. Each place attends to itself along time.
        along = _own(block.temporal_attention, block.temporal_layernorm(places))
        places = places + block.temporal_dense(through(along, block.drop_path))
        frames = places.view(batch, -1, *places.shape[1:]).transpose(1, 2)
        # 2. Each frame attends to itself, and to its copy of the class token.
        tokens = torch.cat([front.unsqueeze(1).expand(-1, frames.shape[1], -1, -1), frames], dim=2)
        update = spatial(block.attention, block.layernorm_before(tokens.flatten(0, 1)))
        update = through(update, block.drop_path).view(*tokens.shape)
        front = front + update[:, :, 0].mean(dim=1, keepdim=True)
        frames = frames + update[:, :, 1:]
        return torch.cat([front.repeat(1, 1, frames.shape[1]), frames.transpose(1, 2).flatten(2)], dim=1)

    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        own: Any = block
        width = own.config.hidden_size
        if x.shape[2] == width:
            return super().mlp(block, x)
        frames = x.shape[2] // width
        form = Tubes(torch.Size((len(x), 1 + (x.shape[1] - 1) * frames, width)), prefix=1, frames=frames)
        return form.taken(super().mlp(block, form.given(x)))

    def macs(self, block: nn.Module) -> BlockMacs:
        own: Any = block
        one, frames = super().macs(block), own.config.num_frames
        time = linear_macs(own.temporal_attention) + linear_macs(own.temporal_dense)
        time = frames * (time + 2 * one.attention_width * frames)
        # Neither time nor more than one MLP is there for the class token.
        return BlockMacs(
            attention_linear=frames * one.attention_linear + time,
            mlp_linear=frames * one.mlp_linear,
            attention_width=frames * one.attention_width,
            besides=-time - (frames - 1) * one.mlp_linear,
        )

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return False  # its classifier reads the class token


def _own(attention: Any, x: Tensor) -> Tensor:
    """What the block's own attention answers to ``x``."""
    return attention(x)[0]  # type: ignore[no-any-return]


def _fused(attention: Any, x: Tensor, tap: Tap, batch: int) -> Tensor:
    """The same of frames ``x`` (B · T, L, C) through the fused kernel, the heads of a clip's frames side by side."""
    inner, (heads, _) = attention.attention, heads_of(attention)
    parts = inner.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = (part.reshape(batch, -1, *part.shape[2:]) for part in parts)
    dropout = inner.attn_drop.p if inner.training else 0.0
    with tap:
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=inner.scale)
    joined = out.reshape(len(x), heads, *out.shape[2:]).transpose(1, 2).flatten(2)
    return attention.output(joined)  # type: ignore[no-any-return]
