"""The axes along which the features of an image or a video lie, where the call of the tower says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tokensieve.families._layout import Grid

SIZES = ("image_grid_thw", "video_grid_thw")  # frames, rows and columns of patches, in front of the merger


def grids_of(given: Mapping[str, Any], config: Any, lengths: Sequence[int]) -> tuple[Grid | None, ...]:
    """(rows, columns) of each image, (frames, rows, columns) of each video, or None where it is not known.

    Args:
        given: the arguments of ``get_image_features`` or ``get_video_features``.
        config: of the model.
        lengths: features of each image.
    """
    sizes = next((given[name] for name in SIZES if isinstance(given.get(name), Tensor)), None)
    if sizes is not None and len(sizes) == len(lengths):
        merged = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
        found: list[Grid | None] = [_merged(size, merged) for size in sizes.tolist()]
    else:
        found = _squares(given.get("pixel_values"), lengths)
    return tuple(
        grid if grid is not None and math.prod(grid) == length else None
        for grid, length in zip(found, lengths, strict=True)
    )


def _merged(size: Sequence[int], merged: int) -> Grid:
    frames, rows, columns = size[0], size[1] // merged, size[2] // merged
    return (rows, columns) if frames == 1 else (frames, rows, columns)


def _squares(pixels: Any, lengths: Sequence[int]) -> list[Grid | None]:
    """Of square pictures that are an image each."""
    square = isinstance(pixels, Tensor) and pixels.dim() == 4 and pixels.shape[2] == pixels.shape[3]
    if not square or len(pixels) != len(lengths):
        return [None] * len(lengths)
    return [(math.isqrt(length),) * 2 for length in lengths]
