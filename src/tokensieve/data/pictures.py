"""Pixels of any depth as the 8 bits that models are given: Pillow's own conversion clips where it should scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# The largest value that a mode may hold, smallest first; of several the first that the image does not exceed.
SCALES = {"I;16": (65535,), "I": (255, 65535), "F": (1, 255, 65535)}


class UnknownPixelsError(OSError):
    """An image whose values cannot be read as brightness."""


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """``image`` in Pillow's ``mode``, "L" or "RGB".

    16-bit values are divided by 257. Whole numbers of 32 bits count as 8-bit ones up to 255 and as 16-bit ones up to
    65535, and so do floating-point numbers, which up to 1 count as shares of white. Transparency is dropped and the
    rotation in EXIF is not followed, as in timm.

    Raises:
        UnknownPixelsError: values are negative, not finite or larger, or Pillow cannot convert the mode.
    """
    scales = SCALES.get("I;16" if image.mode.startswith("I;16") else image.mode)
    if scales is not None:
        image = _in_8_bits(image, scales)
    try:
        return image.convert(mode)
    except ValueError as error:
        raise UnknownPixelsError(f"its mode {image.mode} cannot be converted to {mode}: {error}") from error


def _in_8_bits(image: Image.Image, scales: tuple[int, ...]) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    least, most = values.min(initial=0), values.max(initial=0)
    top = next((scale for scale in scales if most <= scale), None)
    if top is None or not (np.isfinite(values).all() and least >= 0):
        raise UnknownPixelsError(
            f"its values (mode {image.mode}) go from {least:g} to {most:g}: expected 0 to {scales[-1]}; scale them to "
            "8 or 16 bits"
        )
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))


@dataclass(frozen=True)
class InMode:
    """``in_mode`` as the first transform of images.

    Attributes:
        mode: "L" or "RGB".
    """

    mode: str

    def __call__(self, image: Any) -> Image.Image:
        """The image in the mode."""
        return in_mode(image, self.mode)
