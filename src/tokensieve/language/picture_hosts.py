"""How a vision-language model has its pictures, or why it cannot see less of them."""

from __future__ import annotations

import inspect
from typing import Any

from tokensieve.errors import RefusedError
from tokensieve.language.packed_pictures import PACKED, PackedPictures
from tokensieve.language.pictures import Pictures, SizedPictures, WholePictures
from tokensieve.language.placed_pictures import PLACED, PlacedPictures

INTERPOLATES = "interpolate_pos_encoding"  # of towers whose positions are interpolated for other sizes
# Configs that have one of these shuffle squares of patches into a feature.
SQUARES = ("downsample_ratio", "downsample_factor", "scale_factor")
REASONS = {
    "image_grid_pinpoints": "it cuts a picture into tiles and puts newlines between their rows of features",
    "mm_tokens_per_image": "its projector pools every picture to one number of features",
    "qformer_config": "its queries are as many whatever the picture",
    "query_length": "its queries are as many whatever the picture",
    "num_query_tokens": "its queries are as many whatever the picture",
}
ARGUMENTS = {
    "image_grid_thw": "how it lays out patches in their row is not known here",
    "high_res_pixel_values": "it sees every picture in two sizes",
    "tile_fine_mask": "every tile gives one number of features",
}


def pictures_of(core: Any, method: str, prunes: bool) -> Pictures:
    """How the model has pictures whose core this is, for the ``method`` of that name.

    Args:
        core: of the model.
        method: in refusals.
        prunes: whether patches are to be left out, rather than pictures resized.

    Raises:
        RefusedError: it takes pictures of one size, or gives a number of features that does not follow their size.
    """
    found = _found(core, prunes)
    if isinstance(found, Pictures):
        return found
    raise RefusedError(
        f"{type(core).__name__} cannot see less of a picture by {method}: {found}; choose a method that acts in front "
        "of the decoder, divprune for one"
    )


def _found(core: Any, prunes: bool) -> Pictures | str:
    """How the model has pictures, or why it cannot see less of them."""
    config: Any = core.config
    kind = getattr(config, "model_type", None)
    if kind in PACKED:
        return PackedPictures.of(core)
    asked = inspect.signature(core.get_image_features).parameters
    reasons = [reason for name, reason in ARGUMENTS.items() if name in asked]
    reasons += [reason for name, reason in REASONS.items() if getattr(config, name, None) is not None]
    if reasons:
        return reasons[0]
    if prunes:
        return "its tower takes whole pictures, not patches in one row"
    vision: Any = getattr(config, "vision_config", None)
    patch = _sides(getattr(vision, "patch_size", None))
    if patch is None:
        return "its config names no patch_size of the tower"
    if kind in PLACED:
        return PlacedPictures(patch[0], vision.pooling_kernel_size)
    unit = (patch[0] * _merged(config), patch[1] * _merged(config))
    if vision.model_type == "pixtral":
        return SizedPictures(unit)
    if hasattr(config, "scale_factor") or any(hasattr(part, INTERPOLATES) for part in core.modules()):
        return WholePictures(unit, any(hasattr(config, name) for name in SQUARES), _asks(core))
    return "how its tower takes pictures of other sizes is not known here"


def _sides(patch: Any) -> tuple[int, int] | None:
    if isinstance(patch, int):
        return patch, patch
    return (int(patch[0]), int(patch[1])) if isinstance(patch, (tuple, list)) and len(patch) == 2 else None


def _merged(config: Any) -> int:
    """How many patches along a side become one feature."""
    ratio: float | None = getattr(config, "downsample_ratio", None)
    if ratio is not None:
        return round(1 / ratio)
    names = ("downsample_factor", "scale_factor", "spatial_merge_size")
    return next((int(side) for name in names if (side := getattr(config, name, None))), 1)


def _asks(core: Any) -> bool:
    """Whether the tower interpolates only when it is told to."""
    parts = (part for part in core.modules() if hasattr(part, INTERPOLATES))
    return any(INTERPOLATES in inspect.signature(type(part).forward).parameters for part in parts)
