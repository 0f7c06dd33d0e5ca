"""LeMeViT (arXiv 2405.09789): a hierarchical ViT whose image tokens talk to each other through 16 meta tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from tokensieve.prototype.backbones._defaults import initialise, untrained_cfgs
from tokensieve.prototype.backbones._staged import Stage, StagedBackbone, drop_path_rates

Mixing = Literal["cross", "dual", "self"]
MIXING: tuple[Mixing, ...] = ("cross", "dual", "dual", "self", "self")
STRIDES = (4, 4, 8, 16, 32)
HEAD_WIDTH = 32


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Multi-head attention of (B, L, C) queries over (B, S, C) keys and values, each head ``HEAD_WIDTH`` wide."""
    q, k, v = (part.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """The meta tokens gather from the image; the image tokens do not change."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = HEAD_WIDTH**-0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor | None, Tensor]:
        keys, values = self.kv(x).chunk(2, dim=2)
        return None, self.proj(_attend(self.q(meta), keys, values, self.scale))


class DualCrossAttention(nn.Module):
    """Image tokens attend to the meta tokens and these to the image tokens: linear in the number of image tokens.

    The logits of the N image tokens over the M meta tokens are scaled by log M / log N in addition to C^-½.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.meta_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.meta_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor | None, Tensor]:
        queries, keys, values = self.qkv(x).chunk(3, dim=2)
        meta_queries, meta_keys, meta_values = self.meta_qkv(meta).chunk(3, dim=2)
        # A single image token would have log N = 0; it then is scaled like two.
        length_scale = math.log(max(meta.shape[1], 2)) / math.log(max(x.shape[1], 2))
        out = _attend(queries, meta_keys, meta_values, self.scale * length_scale)
        return self.proj(out), self.meta_proj(_attend(meta_queries, keys, values, self.scale))


class SelfAttention(nn.Module):
    """Ordinary attention of the image tokens to one another, and of the meta tokens, by the same weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = HEAD_WIDTH**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor | None, Tensor]:
        return self._among(x), self._among(meta)

    def _among(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.qkv(tokens).chunk(3, dim=2)
        out: Tensor = self.proj(_attend(queries, keys, values, self.scale))
        return out


ATTENTION: dict[Mixing, type[nn.Module]] = {
    "cross": CrossAttention,
    "dual": DualCrossAttention,
    "self": SelfAttention,
}


class LeMeBlock(nn.Module):
    """A depth-wise convolution for positions, then attention and MLP; both streams use the same norms and MLP."""

    def __init__(self, dim: int, mixing: Mixing, drop_path: float) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ATTENTION[mixing](dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        """The image (B, C, H, W) and the meta tokens (B, M, C) after the block."""
        tokens = (x + self.position(x)).flatten(2).transpose(1, 2)
        update, meta_update = self.attn(self.norm1(tokens), self.norm1(meta))
        meta = self._add(meta, meta_update)
        if update is None:  # where it only gathers, positions go into keys and values and nowhere else
            return x, meta
        return self._add(tokens, update).transpose(1, 2).reshape(x.shape), meta

    def _add(self, tokens: Tensor, update: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(update)
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out


class LeMeStage(Stage):
    """Blocks of one resolution, behind what brings image and meta tokens to it."""

    def __init__(self, dim_in: int, dim: int, mixing: Mixing, downsample: bool, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.downsample = _halve(dim_in, dim) if downsample else nn.Identity()
        self.meta = nn.Sequential(
            nn.Linear(dim_in, 4 * dim_in),
            nn.LayerNorm(4 * dim_in),
            nn.GELU(),
            nn.Linear(4 * dim_in, dim),
            nn.LayerNorm(dim),
        )
        self.blocks = nn.ModuleList([LeMeBlock(dim, mixing, rate) for rate in drop_paths])

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        x, meta = self.downsample(x), self.meta(meta)
        for block in self.blocks:
            x, meta = self.run(block, x, meta)
        return x, meta


def _halve(dim_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim_in, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim))


class LeMeViT(StagedBackbone):
    """Learnable meta tokens: 16 tokens that gather the image, and through which image tokens exchange information.

    Five stages at strides 4, 4, 8, 16, 32. In the first the meta tokens gather from the image (cross-attention; the
    image stays as it is, its depth-wise convolution feeds keys and values alone); in the next two image and meta tokens
    attend to each other (dual cross-attention, linear in the number of image tokens); in the last two the image tokens
    attend to one another and so do the meta tokens, by the same weights.

    Parameters and MACs are those of the paper to the digits it gives (8.64 M and 1.78 G, 16.40 M and 3.74 G, 53.10 M
    and 11.06 G at 224² pixels, products of queries, keys and values not counted); its accuracies are not claimed, as
    there are no weights. With the authors' weights, which map onto its parameters one to one, it answers as theirs.

    Args:
        dims, depths: channels and blocks of the five stages; channels in multiples of 32.
        in_chans: channels of the images.
        num_classes: classes; 0 for none.
        global_pool: "avg", the sum of the means over image tokens and over meta tokens, or "" for none.
        meta_tokens: how many.
        drop_rate, drop_path_rate: dropout before the classifier, stochastic depth rising linearly to this rate.
    """

    irreducible: ClassVar[str] = (
        "its image tokens lie on a grid that every block convolves, and attend to 16 meta tokens rather than to each "
        "other in the early stages: no token can leave"
    )

    pools = ("avg",)
    untapped = 1  # it gathers meta tokens and convolves the image once

    def __init__(
        self,
        dims: Sequence[int] = (64, 64, 128, 192, 320),
        depths: Sequence[int] = (1, 2, 2, 8, 2),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        meta_tokens: int = 16,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(dims, STRIDES, in_chans, meta_tokens, drop_rate)
        self.stem = nn.Sequential(_halve(in_chans, dims[0] // 2), nn.GELU(), _halve(dims[0] // 2, dims[0]))
        self.meta_tokens = nn.Parameter(torch.zeros(1, meta_tokens, dims[0]))
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            [LeMeStage(dims[max(i - 1, 0)], dims[i], MIXING[i], i > 1, rates[i]) for i in range(len(dims))]
        )
        self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.meta_norm: nn.Module = nn.LayerNorm(dims[-1])
        self.reset_classifier(num_classes, global_pool)
        self.apply(initialise)
        trunc_normal_(self.meta_tokens, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond norms and biases."""
        return {"meta_tokens"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: stem, blocks (or stages, if ``coarse``), norms."""
        fine = [(r"^stages\.(\d+)\.(?:downsample|meta)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        blocks = r"^stages\.(\d+)" if coarse else [*fine, (r"^norm|^meta_norm", (99999,))]
        return {"stem": r"^stem|^meta_tokens", "blocks": blocks}

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.stem(x), self.meta_tokens.expand(x.shape[0], -1, -1)

    def normalise(self, image: Tensor, prefix: Tensor) -> Tensor:
        return torch.cat([self.meta_norm(prefix), self.norm(image).flatten(2).transpose(1, 2)], dim=1)

    def pool(self, tokens: Tensor) -> Tensor:
        meta = self.num_prefix_tokens
        return tokens[:, meta:].mean(dim=1) + tokens[:, :meta].mean(dim=1)

    def remove_norms(self) -> None:
        self.norm, self.meta_norm = nn.Identity(), nn.Identity()


default_cfgs = untrained_cfgs(
    "lemevit", ("tiny", "small", "base"), pool_size=(7, 7), first_conv="stem.0.0", paper_ids="arXiv:2405.09789"
)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> LeMeViT:
    """The model, which takes images of any size; ``img_size`` is the size that data is prepared for."""
    img_size = kwargs.pop("img_size", None)
    if img_size is not None:
        overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
        size = (kwargs.get("in_chans", 3), *to_2tuple(img_size))
        kwargs["pretrained_cfg_overlay"] = {**overlay, "input_size": size}
    model: LeMeViT = build_model_with_cfg(
        LeMeViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register_model
def lemevit_tiny(pretrained: bool = False, **kwargs: Any) -> LeMeViT:
    """LeMeViT-Tiny: 8.636 M parameters."""
    return _create("lemevit_tiny", pretrained, {"dims": (64, 64, 128, 192, 320), "depths": (1, 2, 2, 8, 2), **kwargs})


@register_model
def lemevit_small(pretrained: bool = False, **kwargs: Any) -> LeMeViT:
    """LeMeViT-Small: 16.400 M parameters."""
    return _create("lemevit_small", pretrained, {"dims": (96, 96, 192, 320, 384), "depths": (1, 2, 2, 6, 2), **kwargs})


@register_model
def lemevit_base(pretrained: bool = False, **kwargs: Any) -> LeMeViT:
    """LeMeViT-Base: 53.098 M parameters."""
    return _create("lemevit_base", pretrained, {"dims": (96, 96, 192, 384, 512), "depths": (2, 4, 4, 18, 4), **kwargs})
