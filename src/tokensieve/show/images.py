"""Reading an image of any kind as RGB, and the two views of it: the model's input and the picture people look at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor

from tokensieve.data.pictures import UnknownPixelsError, in_mode
from tokensieve.errors import TokensieveError
from tokensieve.show.draw import PANEL


def read_image(path: Path) -> Image.Image:
    """The image as RGB, upright by its EXIF orientation; transparent parts on white, more bits scaled to 8.

    Raises:
        TokensieveError: no such file, a folder, or not an image that can be decoded.
    """
    if path.is_dir():
        raise TokensieveError(f"{path} is a folder: name the image files to show, such as {path / '*.jpg'}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except FileNotFoundError:
        raise TokensieveError(f"no image {path}: name a file that exists") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokensieveError(f"cannot read {path} as an image ({reason}): give a JPEG, PNG or WebP file") from error
    try:
        return _as_rgb(image)
    except UnknownPixelsError as error:
        raise TokensieveError(f"cannot read {path} as an image: {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return in_mode(image, "RGB")


def model_input(image: Image.Image, config: dict[str, Any]) -> Tensor:
    """The (1, 3, height, width) tensor that timm's evaluation transform gives for ``image``.

    Args:
        image: RGB.
        config: what ``timm.data.resolve_data_config`` returns.
    """
    tensor = create_transform(**config)(image)
    assert isinstance(tensor, Tensor)
    return tensor.unsqueeze(0)


def model_view(image: Image.Image, config: dict[str, Any]) -> NDArray[np.uint8]:
    """The part of ``image`` that the model sees, (height, width, 3), sharp enough for a panel.

    The same transform without the normalisation, at a whole multiple of the input size.
    """
    channels, height, width = config["input_size"]
    factor = max(1, math.ceil(PANEL / max(height, width)))
    plain = {**config, "input_size": (channels, height * factor, width * factor), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    seen = model_input(image, plain)[0]
    pixels = (seen * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return pixels.numpy()
