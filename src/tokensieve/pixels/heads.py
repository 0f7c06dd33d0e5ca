"""Heads: from feature maps of a backbone to maps of K channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest


class Head(nn.Module, ABC):
    """A head reads the maps of some blocks, each (B, C, h, w) behind the backbone's last norm.

    Attributes:
        name: what the command line calls it.
        taps: the 0-based blocks it reads.
    """

    name: ClassVar[str]
    taps: tuple[int, ...]

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map a tap, (B, C, h, w), to (B, K, h', w'), whose corners are those of the maps."""


class LinearHead(Head):
    """A 1×1 convolution on the last block's map: what the features hold, with nothing added (DINOv2's linear head).

    Args:
        dim: C of the backbone. depth: its blocks. channels: K.
    """

    name = "linear"

    def __init__(self, dim: int, depth: int, channels: int) -> None:
        super().__init__()
        self.taps = (depth - 1,)
        self.predict = nn.Conv2d(dim, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.predict(maps[-1])
        return out


class DPTHead(Head):
    """The decoder of "Vision Transformers for Dense Prediction" (arXiv 2103.13413): four blocks, fused coarse to fine.

    The maps are brought to 4, 2, 1 and ½ times the grid and fused by residual convolutions. Prefix tokens are left out
    (the paper's "ignore" readout), and there is no batch norm. The paper's width is 256.

    Args:
        dim: C of the backbone. depth: its blocks, 4 or more. channels: K. width: channels of the fusion.
    """

    name = "dpt"

    def __init__(self, dim: int, depth: int, channels: int, width: int = 32) -> None:
        super().__init__()
        if depth < 4:
            raise TokensieveError(f"the dpt head reads 4 blocks and the model has {depth}: take the linear head")
        self.taps = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        self.resample = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(dim, width, 1), nn.ConvTranspose2d(width, width, 4, stride=4)),
                nn.Sequential(nn.Conv2d(dim, width, 1), nn.ConvTranspose2d(width, width, 2, stride=2)),
                nn.Conv2d(dim, width, 1),
                nn.Sequential(nn.Conv2d(dim, width, 1), nn.Conv2d(width, width, 3, stride=2, padding=1)),
            ]
        )
        self.fuse = nn.ModuleList(_Fusion(width) for _ in range(4))
        self.predict = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [resample(level) for resample, level in zip(self.resample, maps, strict=True)]
        fused: Tensor | None = None
        for number in reversed(range(4)):
            below = levels[number - 1].shape[-2:] if number else tuple(2 * side for side in levels[0].shape[-2:])
            fused = self.fuse[number](levels[number], fused, below)
        out: Tensor = self.predict(fused)
        return out


class _Fusion(nn.Module):
    """Adds a level to what came from the coarser ones and brings the sum to the next finer size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.level = _residual(width)
        self.sum = _residual(width)

    def forward(self, level: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        x = level + self.level(level)
        if coarser is not None:
            x = x + coarser
        x = x + self.sum(x)
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _residual(width: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
    )


class SegmenterHead(Head):
    """The mask transformer of "Segmenter" (arXiv 2105.05633): one learned token a class attends with the patches.

    A patch's logit for a class is the product of both, each of unit length. Made for segmentation; for depth its one
    channel is a product with one learned token.

    Args:
        dim: C of the backbone. depth: its blocks. channels: K. layers: blocks of the decoder.
    """

    name = "segmenter"

    def __init__(self, dim: int, depth: int, channels: int, layers: int = 2) -> None:
        super().__init__()
        self.taps = (depth - 1,)
        self.project = nn.Linear(dim, dim)
        self.classes = nn.Parameter(torch.randn(1, channels, dim) * 0.02)
        heads = next(count for count in range(max(1, dim // 64), 0, -1) if dim % count == 0)
        self.layers = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.of_patches = nn.Linear(dim, dim, bias=False)
        self.of_classes = nn.Linear(dim, dim, bias=False)
        self.mask_norm = nn.LayerNorm(channels) if channels > 1 else nn.Identity()
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0))) if channels == 1 else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        batch, _, rows, columns = maps[-1].shape
        x = torch.cat([self.project(maps[-1].flatten(2).transpose(1, 2)), self.classes.expand(batch, -1, -1)], dim=1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        patches = F.normalize(self.of_patches(x[:, : rows * columns]), dim=-1)
        classes = F.normalize(self.of_classes(x[:, rows * columns :]), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        if self.sharpness is not None:
            masks = masks * self.sharpness.exp()
        out: Tensor = masks.transpose(1, 2).unflatten(2, (rows, columns))
        return out


HEADS: dict[str, type[Head]] = {kind.name: kind for kind in (LinearHead, DPTHead, SegmenterHead)}


def build_head(name: str, dim: int, depth: int, channels: int) -> Head:
    """A fresh head.

    Raises:
        TokensieveError: no head has this name, or the backbone is not deep enough for it.
    """
    if name not in HEADS:
        raise TokensieveError(f"unknown head {name!r}{nearest(name, HEADS)}; known are {', '.join(HEADS)}")
    return HEADS[name](dim, depth, channels)  # type: ignore[call-arg, arg-type]
