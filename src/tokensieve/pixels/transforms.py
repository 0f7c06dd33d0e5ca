"""Transforms of an image and its target together, by torchvision's second version."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from tokensieve.errors import TokensieveError

UNEQUAL = 0.05  # by how much the proportions of an image and its target may differ


class Whole:
    """An image as it is evaluated: resized to the model's size, or to its short side for sliding; targets stay.

    Args:
        config: timm's data config.
        short_side: pixels of the short side; None resizes to the model's input size.
    """

    def __init__(self, config: dict[str, Any], short_side: int | None = None) -> None:
        size = list(config["input_size"][1:]) if short_side is None else short_side
        self.transform = v2.Compose([_resize(size, config), *_finish(config)])

    def __call__(self, image: Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        """RGB to (3, H, W) float32; the target as it came."""
        seen: Tensor = self.transform(tv_tensors.Image(v2.functional.pil_to_tensor(image)))
        return seen.as_subclass(Tensor), target


class Augmented:
    """An image and its target cropped, mirrored and resized alike, the image's colours changed.

    Args:
        config: timm's data config.
        scale: share of the image that crops take; None takes the whole image, as depth needs it.
        hflip: share of images mirrored.
        color_jitter: how much brightness, contrast and saturation change.
    """

    def __init__(
        self, config: dict[str, Any], scale: tuple[float, float] | None, hflip: float, color_jitter: float
    ) -> None:
        size = list(config["input_size"][1:])
        place = (
            _resize(size, config)
            if scale is None
            else v2.RandomResizedCrop(
                size, scale=scale, ratio=(0.75, 1.33), interpolation=_mode(config), antialias=True
            )
        )
        jitter = [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
        self.transform = v2.Compose([place, v2.RandomHorizontalFlip(hflip), *jitter, *_finish(config)])

    def __call__(self, image: Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        """RGB and (H, W) to (3, h, w) float32 and (h, w), nearest neighbours of the target."""
        pixels = tv_tensors.Image(v2.functional.pil_to_tensor(image))
        if tuple(target.shape) != tuple(pixels.shape[1:]):
            target = torch.nn.functional.interpolate(target[None, None].double(), size=pixels.shape[1:])[0, 0].to(
                target.dtype
            )
        seen, wanted = self.transform(pixels, tv_tensors.Mask(target))
        return seen.as_subclass(Tensor), wanted.as_subclass(Tensor)


def check_proportions(image: Image.Image, target: Tensor, name: str) -> None:
    """Raise unless an image and its target, of whatever sizes, show the same.

    Raises:
        TokensieveError: one is wider than the other.
    """
    height, width = target.shape
    if abs(image.width * height / (image.height * width) - 1) > UNEQUAL:
        raise TokensieveError(
            f"the target {name} is {width} × {height} and its image {image.width} × {image.height}: other proportions, "
            "so they do not show the same; targets may be larger or smaller, but not cropped"
        )


def _mode(config: dict[str, Any]) -> InterpolationMode:
    return InterpolationMode(config["interpolation"])


def _resize(size: list[int] | int, config: dict[str, Any]) -> Any:
    return v2.Resize(size, interpolation=_mode(config), antialias=True)


def _finish(config: dict[str, Any]) -> list[Any]:
    floats: Any = {tv_tensors.Image: torch.float32, "others": None}
    return [v2.ToDtype(floats, scale=True), v2.Normalize(mean=list(config["mean"]), std=list(config["std"]))]
