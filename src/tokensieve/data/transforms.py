"""How images are prepared for a model: what it was trained with, and what is asked for instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from tokensieve.data.options import TransformOptions
from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def data_config(model: nn.Module, options: TransformOptions | None = None) -> dict[str, Any]:
    """timm's data config for ``model``: its own channels and input size, and what it was trained with for the rest.

    Args:
        model: the model.
        options: what is asked for instead; ``img_size`` is by default the size that the model was built for.

    Raises:
        TokensieveError: a value that cannot be one of those.
    """
    options = TransformOptions() if options is None else options
    crop_pct, interpolation, mean, std = options.crop_pct, options.interpolation, options.mean, options.std
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise TokensieveError(f"crop_pct is the share of the image that the crop takes, in (0, 1], got {crop_pct}")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise TokensieveError(
            f"unknown interpolation {interpolation!r}{nearest(interpolation, INTERPOLATIONS)}; "
            f"known are {', '.join(INTERPOLATIONS)}"
        )
    if std is not None and min(std) <= 0:
        raise TokensieveError(f"std must be above 0, got {min(std)}")
    embed = getattr(model, "patch_embed", None)
    size = options.img_size
    asked_size = (size, size) if isinstance(size, int) else size
    own = getattr(embed, "img_size", None) if asked_size is None else asked_size
    asked = {"crop_pct": crop_pct, "interpolation": interpolation}
    config: dict[str, Any] = resolve_data_config(asked, model=model)
    convolved = getattr(getattr(embed, "proj", None), "in_channels", config["input_size"][0])
    channels = getattr(model, "in_chans", 0) or convolved  # a projection behind a stem has the stem's channels
    config["input_size"] = (channels, *(own or config["input_size"][1:]))
    for name, given in (("mean", mean), ("std", std)):
        config[name] = _per_channel(name, config[name] if given is None else given, channels, given is not None)
    return config


def _per_channel(name: str, values: Sequence[float], channels: int, asked: bool) -> tuple[float, ...]:
    """One number for each channel, from one for all or one for each."""
    if len(values) == channels:
        return tuple(values)
    if asked and len(values) != 1:
        raise TokensieveError(f"{name} must be one number or {channels}, one for each channel, got {list(values)}")
    # What a model was trained with is for three channels; another number of them gets the mean.
    return (sum(values) / len(values),) * channels
