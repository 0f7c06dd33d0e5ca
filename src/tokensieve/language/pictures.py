"""The pictures that a vision-language model is given, and smaller ones in their place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid

Resize = Callable[[Tensor, int, int], Tensor]  # pictures (B, C, H, W) to so many rows and columns of pixels


class Pictures(ABC):
    """The pictures of a call of ``get_image_features`` or ``get_video_features``.

    Attributes:
        square: whether features are made of squares of patches alone.
    """

    square: bool = False

    @abstractmethod
    def grids(self, modality: str, given: Mapping[str, Any]) -> list[Grid]:
        """The axes along which the features of each picture lie."""

    @abstractmethod
    def resized(self, modality: str, given: Mapping[str, Any], grids: Sequence[Grid], resize: Resize) -> dict[str, Any]:
        """What is ``given`` with pictures whose features lie along these axes."""

    def pixels_of_features(self, modality: str, given: Mapping[str, Any]) -> list[Tensor]:
        """Of each picture (T, R, C, P), the pixels that each feature is made of, in T frames."""
        raise NotImplementedError("pictures_of refuses methods that ask for this")

    def pruned(self, modality: str, given: Mapping[str, Any], keep: Sequence[Tensor]) -> dict[str, Any]:
        """What is ``given`` without the patches of features where ``keep`` (T, R, C) of each picture is False."""
        raise NotImplementedError("pictures_of refuses methods that ask for this")


@dataclass(frozen=True)
class WholePictures(Pictures):
    """Pictures of one size, (B, C, H, W), or by row of a batch (B, I, C, H, W), where empty ones are none.

    Attributes:
        unit: rows and columns of pixels that a feature is made of.
        square: whether features are made of squares of patches alone.
        asks: whether the tower wants to be told that sizes differ from its own.
    """

    unit: tuple[int, int]
    square: bool = False
    asks: bool = False

    def grids(self, modality: str, given: Mapping[str, Any]) -> list[Grid]:
        pixels = _pixels(modality, given)
        number = len(pixels) if pixels.dim() == 4 else int((pixels != 0).any(dim=4).any(dim=3).any(dim=2).sum())
        return [(pixels.shape[-2] // self.unit[0], pixels.shape[-1] // self.unit[1])] * number

    def resized(self, modality: str, given: Mapping[str, Any], grids: Sequence[Grid], resize: Resize) -> dict[str, Any]:
        pixels = _pixels(modality, given)
        size = _pixels_of(grids[0], self.unit)
        new = {**given, "pixel_values": resize(pixels.flatten(0, -4), *size).unflatten(0, pixels.shape[:-3])}
        mask = given.get("pixel_attention_mask")
        if mask is not None:
            new["pixel_attention_mask"] = F.interpolate(mask.float(), size, mode="nearest").to(mask.dtype)
        return {**new, "interpolate_pos_encoding": True} if self.asks else new


@dataclass(frozen=True)
class SizedPictures(Pictures):
    """Pictures (B, C, H, W) of several sizes, padded on the right and below, beside their sizes (Pixtral).

    Attributes:
        unit: rows and columns of pixels that a feature is made of.
    """

    unit: tuple[int, int]

    def grids(self, modality: str, given: Mapping[str, Any]) -> list[Grid]:
        return [(rows // self.unit[0], columns // self.unit[1]) for rows, columns in _sizes(modality, given)]

    def resized(self, modality: str, given: Mapping[str, Any], grids: Sequence[Grid], resize: Resize) -> dict[str, Any]:
        pixels, sizes = _pixels(modality, given), [_pixels_of(grid, self.unit) for grid in grids]
        most = [max(side) for side in zip(*sizes, strict=True)]
        padded = pixels.new_zeros(*pixels.shape[:2], *most)
        for place, picture, (rows, columns), new in zip(padded, pixels, _sizes(modality, given), sizes, strict=True):
            smaller = picture[:, :rows, :columns]
            if (rows, columns) != new:
                smaller = resize(smaller.unsqueeze(0), *new)[0]
            place[:, : new[0], : new[1]] = smaller
        return {**given, "pixel_values": padded, "image_sizes": torch.tensor(sizes, device=pixels.device)}


def _pixels(modality: str, given: Mapping[str, Any]) -> Tensor:
    """The pixels that are given.

    Raises:
        RefusedError: they are a video's, or have another number of axes.
    """
    pixels = given.get("pixel_values")
    if modality != "image" or not isinstance(pixels, Tensor) or pixels.dim() not in (4, 5):
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise RefusedError(
            f"pictures are made smaller where pixel_values are (B, C, H, W), or (B, I, C, H, W) by row: got a call "
            f"for {modality}s with pixel_values of {shape}; choose a method that acts in front of the decoder, "
            "divprune for one"
        )
    return pixels


def _sizes(modality: str, given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of pixels of each picture."""
    pixels, sizes = _pixels(modality, given), given.get("image_sizes")
    if sizes is None:
        return [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    return [(int(rows), int(columns)) for rows, columns in sizes]


def _pixels_of(grid: Grid, unit: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of pixels of a picture whose features lie in this grid."""
    return grid[0] * unit[0], grid[1] * unit[1]
