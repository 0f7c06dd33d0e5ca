"""Pictures as patches with the place of each, as Gemma 4 has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid
from tokensieve.language.pictures import Pictures, Resize

PLACES = "image_position_ids"
PLACED = ("gemma4",)  # models of transformers that have pictures so


@dataclass(frozen=True)
class PlacedPictures(Pictures):
    """Patches (B, N, p · p · C) of each picture and their places (B, N, 2), column and row; -1 where there is none.

    Attributes:
        patch: p.
        side: patches along each side of the square that is pooled into a feature.
    """

    patch: int
    side: int

    def grids(self, modality: str, given: Mapping[str, Any]) -> list[Grid]:
        _, places = self._given(modality, given)
        return [(int(rows) // self.side, int(columns) // self.side) for columns, rows in places.amax(dim=1) + 1]

    def resized(self, modality: str, given: Mapping[str, Any], grids: Sequence[Grid], resize: Resize) -> dict[str, Any]:
        pixels, places = self._given(modality, given)
        found = [
            self._smaller(patches, own, (grid[0] * self.side, grid[1] * self.side), resize)
            for patches, own, grid in zip(pixels, places, grids, strict=True)
        ]
        most = max(len(patches) for patches, _ in found)
        patches = torch.stack([F.pad(patches, (0, 0, 0, most - len(patches))) for patches, _ in found])
        own = torch.stack([F.pad(places, (0, 0, 0, most - len(places)), value=-1) for _, places in found])
        return {**given, "pixel_values": patches, PLACES: own}

    def _smaller(self, patches: Tensor, places: Tensor, size: tuple[int, int], resize: Resize) -> tuple[Tensor, Tensor]:
        """The patches of a picture with so many rows and columns of them, and their places."""
        there = (places >= 0).all(dim=1)
        patches, places, patch = patches[there], places[there], self.patch
        columns, rows = (int(most) + 1 for most in places.amax(dim=0))
        if (rows, columns) == size:
            return patches, places
        whole = patches.new_zeros(rows, columns, patches.shape[1])
        whole[places[:, 1], places[:, 0]] = patches
        picture = whole.view(rows, columns, patch, patch, -1).permute(4, 0, 2, 1, 3)
        small = resize(picture.reshape(1, -1, rows * patch, columns * patch), size[0] * patch, size[1] * patch)
        cut = small.view(-1, size[0], patch, size[1], patch).permute(1, 3, 2, 4, 0).reshape(size[0] * size[1], -1)
        row, column = (torch.arange(side, device=places.device, dtype=places.dtype) for side in size)
        return cut, torch.cartesian_prod(row, column).flip(1)

    def _given(self, modality: str, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The patches and their places.

        Raises:
            RefusedError: they are a video's, or do not belong together.
        """
        pixels, places = given.get("pixel_values"), given.get(PLACES)
        both = isinstance(pixels, Tensor) and isinstance(places, Tensor) and pixels.shape[:2] == places.shape[:2]
        if modality != "image" or not both:
            raise RefusedError(
                f"pictures are made smaller where pixel_values are (B, N, p · p · C) and {PLACES} (B, N, 2): got a "
                f"call for {modality}s with other values; choose a method that acts in front of the decoder, divprune "
                "for one"
            )
        return pixels, places  # type: ignore[return-value]
