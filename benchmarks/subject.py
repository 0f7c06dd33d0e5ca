"""What every kind of cell starts from: the dense model, its reduced variants, and the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokensieve as ts
from cells import Cell, Setting
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.measure.benchmark import COUNTED_IMAGES, reduce
from tokensieve.measure.macs import MacReport, count
from tokensieve.measure.results import DENSE
from tokensieve.measure.timing import Variant
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.models.runtime import Runtime


@dataclass(frozen=True)
class Subject:
    """A setting brought to life.

    Attributes:
        dense: the dense model, placed where ``runtime`` says.
        x: (B, C, H, W), the images, there too.
        runtime: of the setting.
        base: MACs of the dense model.
        variants: the reduced models in the order of the cell's methods, without the dense one.
        told: what the figures were measured on, for the record.
    """

    dense: nn.Module
    x: Tensor
    runtime: Runtime
    base: MacReport
    variants: tuple[Variant, ...]
    told: dict[str, Any]

    @property
    def all(self) -> tuple[Variant, ...]:
        """The dense model and the variants."""
        return (Variant(DENSE, self.dense, self.base), *self.variants)


def prepare(cell: Cell, device: str, data: str | None) -> Subject:
    """Model, variants and images of ``cell``.

    Weights are random, which changes no time of a method that keeps a fixed number of tokens.

    Args:
        cell: what is to be measured.
        device: a torch device.
        data: folder of images, one sub-folder a class, or None for random numbers.

    Raises:
        TokensieveError: an engine that this device does not have, an unknown model or method, or unreadable images.
    """
    setting = cell.setting
    runtime = setting.runtime(device)
    runtime.check()
    torch.manual_seed(0)
    dense = runtime.place(create(ModelOptions(setting.model, img_size=setting.img_size)))
    methods = {spec: ts.parse(spec) for spec in cell.methods}
    ragged = any(method.ragged for chosen in methods.values() for method in chosen)
    sample = _images(setting, data, dense, max(setting.batch, COUNTED_IMAGES if ragged else 1))
    sample = runtime.send(sample)
    with torch.no_grad():
        base = count(dense, sample[:1])
        variants = tuple(_variant(dense, spec, chosen, sample) for spec, chosen in methods.items())
    told = {
        "weights": "random",
        "images": "random numbers" if data is None else f"photographs, the folder {Path(data).name}",
    }
    return Subject(dense, sample[: setting.batch], runtime, base, variants, told)


def _variant(dense: nn.Module, spec: str, methods: Sequence[ts.Method], sample: Tensor) -> Variant:
    model = reduce(dense, methods)
    ragged = any(method.ragged for method in methods)
    return Variant(spec, model, count(model, sample if ragged else sample[:1]))


def _images(setting: Setting, data: str | None, dense: nn.Module, images: int) -> Tensor:
    if data is None:
        return torch.randn(images, 3, setting.img_size, setting.img_size)
    arguments = DataOptions(data=data, img_size=setting.img_size, batch_size=min(images, 64), workers=0, limit=images)
    return open_images(arguments, dense).first(images)
