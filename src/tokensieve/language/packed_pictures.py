"""Pictures as patches in one row, as Qwen2-VL and its like have them: smaller ones, and ones with holes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid
from tokensieve.language.pictures import Pictures, Resize

# Models of transformers whose towers lay out patches as below, and work out nothing more from the sizes of pictures.
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
GIVEN = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
# What a tower works out from the sizes of pictures, where it is not told.
WORKED_OUT = (
    *("position_ids", "cu_seqlens", "max_seqlen", "interp_indices", "interp_weights"),
    *("window_index", "cu_window_seqlens", "max_window_seqlen"),
)


@dataclass(frozen=True)
class PackedPictures(Pictures):
    """Patches (Σ N, C · t · p · p) of all pictures, and the sizes (frames, rows, columns) of each in patches. Those
    that become one feature, s × s, lie together; the features of a frame go row by row.

    Attributes:
        tower: of the model.
        channels: C.
        patch: p.
        side: s.
    """

    tower: Any
    channels: int
    patch: int
    side: int

    @staticmethod
    def of(core: Any) -> PackedPictures:
        """Of the model whose core this is."""
        vision = core.config.vision_config
        return PackedPictures(core.visual, vision.in_channels, vision.patch_size, vision.spatial_merge_size)

    def grids(self, modality: str, given: Mapping[str, Any]) -> list[Grid]:
        _, sizes = self._given(modality, given)
        merged = [(frames, rows // self.side, columns // self.side) for frames, rows, columns in sizes]
        return [grid if grid[0] > 1 else grid[1:] for grid in merged]

    def resized(self, modality: str, given: Mapping[str, Any], grids: Sequence[Grid], resize: Resize) -> dict[str, Any]:
        pixels, sizes = self._given(modality, given)
        names, rows, found = GIVEN[modality], [], []
        for part, size, grid in zip(self._parts(pixels, sizes), sizes, grids, strict=True):
            new = (size[0], *(side * self.side for side in grid[-2:]))
            frames = self._frames(part, size)
            rows.append(
                part if new == tuple(size) else self._patches(resize(frames, *(n * self.patch for n in new[1:])), new)
            )
            found.append(new)
        grid_thw = given[names[1]].new_tensor(found)
        return {**given, names[0]: torch.cat(rows), names[1]: grid_thw}

    def pixels_of_features(self, modality: str, given: Mapping[str, Any]) -> list[Tensor]:
        pixels, sizes = self._given(modality, given)
        return [
            part.view(frames, rows // self.side, columns // self.side, -1)
            for part, (frames, rows, columns) in zip(self._parts(pixels, sizes), sizes, strict=True)
        ]

    def pruned(self, modality: str, given: Mapping[str, Any], keep: Sequence[Tensor]) -> dict[str, Any]:
        pixels, _ = self._given(modality, given)
        names, joins = GIVEN[modality], self.side**2
        stays = torch.cat([picture.flatten() for picture in keep])
        told = self._told(given[names[1]], stays, keep)
        # The tower is told where the patches lie, and reads of the sizes only how many features each picture has.
        found = [(1, self.side, self.side * int(picture.sum())) for picture in keep]
        left = pixels[stays.repeat_interleave(joins)]
        return {**given, **told, names[0]: left, names[1]: given[names[1]].new_tensor(found)}

    def _told(self, sizes: Tensor, stays: Tensor, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the tower would work out from the ``sizes`` of whole pictures, of the features that stay."""
        from transformers import vision_utils

        tower, joins = self.tower, self.side**2
        here = stays.repeat_interleave(joins)
        frames = torch.cat([picture.sum(dim=(1, 2)) for picture in keep]) * joins
        told = {
            "position_ids": vision_utils.get_vision_position_ids(sizes, self.side)[here.to(sizes.device)],
            "cu_seqlens": _borders(frames.to(sizes.device)),
        }
        if hasattr(tower, "num_grid_per_side"):
            taps = vision_utils.get_vision_interpolation_indices_and_weights(
                sizes,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=self.side,
            )
            indices, weights = (tap[here.to(tap.device)] for tap in taps)
            told |= {"interp_indices": indices, "interp_weights": weights}
        if hasattr(tower, "window_size"):
            index, borders = vision_utils.get_vision_window_index(
                sizes, spatial_merge_size=self.side, window_size=tower.window_size, patch_size=tower.patch_size
            )
            told |= _windows(index, borders // joins, stays.to(index.device), joins)
        return told

    def _given(self, modality: str, given: Mapping[str, Any]) -> tuple[Tensor, list[list[int]]]:
        """The patches, and the sizes of the pictures.

        Raises:
            RefusedError: they do not belong together, or the tower is told what it would work out from them.
        """
        names = [*WORKED_OUT, *(f"{modality}_{name}" for name in WORKED_OUT)]
        told = [name for name in names if given.get(name) is not None]
        if told:
            raise RefusedError(
                f"{told[0]} says of whole pictures where their patches lie, and less of them goes in: leave it out"
            )
        pixels, sizes = (given.get(name) for name in GIVEN[modality])
        length = int(sizes.prod(dim=1).sum()) if isinstance(sizes, Tensor) else None
        whole = isinstance(pixels, Tensor) and pixels.dim() == 2 and len(pixels) == length
        if not whole or pixels.shape[1] % (self.channels * self.patch**2):  # type: ignore[union-attr]
            shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise RefusedError(
                f"{GIVEN[modality][0]} of shape {shape} with {length} patches in {GIVEN[modality][1]}: expected a row "
                f"for each patch, of {self.channels} channels of {self.patch} × {self.patch} pixels in one or more "
                "frames"
            )
        return pixels, sizes.tolist()  # type: ignore[union-attr,return-value]

    def _parts(self, pixels: Tensor, sizes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        yield from pixels.split([frames * rows * columns for frames, rows, columns in sizes])

    def _frames(self, rows: Tensor, size: Sequence[int]) -> Tensor:
        """(T · t, C, H, W) of the patches of one picture."""
        (frames, high, wide), side, patch = size, self.side, self.patch
        parts = rows.view(frames, high // side, wide // side, side, side, self.channels, -1, patch, patch)
        return parts.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(-1, self.channels, high * patch, wide * patch)

    def _patches(self, frames: Tensor, size: Sequence[int]) -> Tensor:
        """The patches of one picture of (T · t, C, H, W)."""
        (number, high, wide), side, patch = size, self.side, self.patch
        parts = frames.view(number, -1, self.channels, high // side, side, patch, wide // side, side, patch)
        return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(number * high * wide, -1)


def _borders(lengths: Tensor) -> Tensor:
    """(S + 1,) int32: where sequences of these lengths, one behind the other, begin and end."""
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _windows(index: Tensor, borders: Tensor, stays: Tensor, joins: int) -> dict[str, Tensor]:
    """The order of the features that stay, by windows, and the borders of those windows in patches.

    Args:
        index: (G,) the order of all features.
        borders: (W + 1,) of windows, in features.
        stays: (G,) bool, which features stay, in the order of the pictures.
        joins: patches of a feature.
    """
    here = stays[index]
    place = stays.long().cumsum(0) - 1
    window = torch.bucketize(torch.arange(len(index), device=index.device), borders[1:].to(index.device), right=True)
    lengths = torch.bincount(window[here], minlength=len(borders) - 1)
    return {"window_index": place[index[here]], "cu_window_seqlens": _borders(lengths[lengths > 0] * joins)}
