"""PSViT (arXiv 2108.03428), a reconstruction: tokens are pooled between stages, neighbouring layers reuse one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, trunc_normal_
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from tokensieve.prototype.backbones._defaults import initialise, untrained_cfgs
from tokensieve.prototype.backbones._staged import Stage, StagedBackbone, drop_path_rates


class SharingAttention(nn.Module):
    """Attention that makes a map of its own, or applies the one it is given: then only V and the projection run."""

    def __init__(self, dim: int, heads: int, own: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qk = nn.Linear(dim, 2 * dim) if own else None
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, H, L, C / H)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        """The update (B, L, C) and the map (B, H, L, L) that made it."""
        if self.qk is not None:
            queries, keys = (self._split(part) for part in self.qk(x).chunk(2, dim=2))
            shared = (queries * self.scale @ keys.transpose(2, 3)).softmax(dim=3)
        assert shared is not None
        update: Tensor = self.proj((shared @ self._split(self.v(x))).transpose(1, 2).flatten(2))
        return update, shared


class PSBlock(nn.Module):
    """A pre-norm block with ``SharingAttention``."""

    def __init__(self, dim: int, heads: int, own: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SharingAttention(dim, heads, own)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        update, shared = self.attn(self.norm1(x), shared)
        x = x + self.drop_path(update)
        return x + self.drop_path(self.mlp(self.norm2(x))), shared


class PSStage(Stage):
    """Blocks of one resolution, every ``share`` of which use one map; behind the first stage tokens are pooled first.

    Pooling takes the maximum of 3×3 tokens at stride 2; a linear layer brings them and the class token to the stage's
    channels.
    """

    def __init__(self, dim_in: int, dim: int, heads: int, share: int, pools: bool, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.widen = nn.Linear(dim_in, dim) if pools else None
        self.blocks = nn.ModuleList(
            [PSBlock(dim, heads, number % share == 0, rate) for number, rate in enumerate(drop_paths)]
        )

    def forward(self, image: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        if self.widen is not None:
            image = F.max_pool2d(image, 3, stride=2, padding=1)
        height, width = image.shape[2:]
        x = torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)
        if self.widen is not None:
            x = self.widen(x)
        shared: Tensor | None = None
        for block in self.blocks:
            x, shared = self.run(block, x, shared)
        return x[:, 1:].transpose(1, 2).unflatten(2, (height, width)), x[:, :1]


class PSViT(StagedBackbone):
    """A ViT whose tokens are pooled between stages and whose neighbouring layers reuse one attention map.

    A reconstruction from the paper's idea, of which no code exists; no number is claimed. The paper searches how many
    tokens each layer has and which layers reuse a map; here both are given. Our choice: three stages of 16, 32 and 64
    pixels a token, pairs of layers with one map, the pooling, and all sizes, which start from DeiT's.

    Args:
        img_size: (height, width) of the images in pixels, or the side of a square.
        patch_size: pixels of a side of a patch.
        dims, depths, heads: channels, blocks and attention heads of the stages.
        share: layers that use one map; 1 for none.
        in_chans: channels of the images.
        num_classes: classes; 0 for none.
        global_pool: "token", "avg", or "" for none.
        drop_rate, drop_path_rate: dropout before the classifier, stochastic depth rising linearly to this rate.
    """

    irreducible: ClassVar[str] = (
        "it pools its tokens on their grid between stages and its layers reuse attention maps, so a token that leaves "
        "would be missed"
    )
    pools = ("token", "avg")

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dims: Sequence[int] = (192, 256, 384),
        depths: Sequence[int] = (4, 6, 2),
        heads: Sequence[int] = (3, 4, 6),
        share: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(dims, [patch_size << i for i in range(len(dims))], in_chans, 1, drop_rate)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, dims[0], flatten=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[0]))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, dims[0]))
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            [PSStage(dims[max(i - 1, 0)], dims[i], heads[i], share, i > 0, rates[i]) for i in range(len(dims))]
        )
        self.norm: nn.Module = nn.LayerNorm(dims[-1])
        self.reset_classifier(num_classes, global_pool)
        self.apply(initialise)
        for tokens in (self.cls_token, self.pos_embed):
            trunc_normal_(tokens, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond norms and biases."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer decay: embedding, blocks (or stages, if ``coarse``), norm."""
        fine = [(r"^stages\.(\d+)\.widen", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embed(x)
        positions = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, *patches.shape[2:])
        return patches + positions, (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)

    def normalise(self, image: Tensor, prefix: Tensor) -> Tensor:
        tokens: Tensor = self.norm(torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1))
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.global_pool == "token" else tokens[:, 1:].mean(dim=1)

    def remove_norms(self) -> None:
        self.norm = nn.Identity()


default_cfgs = untrained_cfgs(
    "psvit", ("tiny", "small"), fixed_input_size=True, first_conv="patch_embed.proj", paper_ids="arXiv:2108.03428"
)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> PSViT:
    model: PSViT = build_model_with_cfg(
        PSViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register_model
def psvit_tiny(pretrained: bool = False, **kwargs: Any) -> PSViT:
    """PSViT that starts as wide as DeiT-Tiny; our sizes."""
    return _create("psvit_tiny", pretrained, {"dims": (192, 256, 384), "heads": (3, 4, 6), **kwargs})


@register_model
def psvit_small(pretrained: bool = False, **kwargs: Any) -> PSViT:
    """PSViT that starts as wide as DeiT-Small; our sizes."""
    return _create("psvit_small", pretrained, {"dims": (384, 512, 768), "heads": (6, 8, 12), **kwargs})
