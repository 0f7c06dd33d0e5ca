"""What every kind of cell starts from: the dense model, its reduced variants, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cell, Setting
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.errors import TokensieveError
from tokensieve.measure.benchmark import COUNTED_IMAGES, reduce
from tokensieve.measure.macs import MacReport, count
from tokensieve.measure.results import DENSE
from tokensieve.measure.solver import solve
from tokensieve.measure.timing import Variant
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.models.runtime import Runtime
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import PixelModel, pixel_model

NEAR = 0.05  # how far from the asked MACs a method may lie to be compared


@dataclass(frozen=True)
class Subject:
    """A setting brought to life.

    Attributes:
        dense: the dense model, placed where ``runtime`` says.
        x: (B, C, H, W), the images, there too.
        runtime: of the setting.
        base: MACs of the dense model.
        variants: the reduced models in the order of the cell's methods, without the dense one.
        asked: the spec that a variant was asked for by, by its name.
        told: what the figures were measured on, for the record.
    """

    dense: nn.Module
    x: Tensor
    runtime: Runtime
    base: MacReport
    variants: tuple[Variant, ...]
    asked: dict[str, str]
    told: dict[str, Any]

    @property
    def all(self) -> tuple[Variant, ...]:
        """The dense model and the variants."""
        return (Variant(DENSE, self.dense, self.base), *self.variants)


def prepare(cell: Cell, device: str, data: str | None, checkpoint: str | None = None) -> Subject:
    """Model, variants and images of ``cell``.

    Weights are random unless a checkpoint is named, which changes no time of a method that keeps a fixed number of
    tokens; so are the images unless ``data`` names a folder with one sub-folder a class.

    Raises:
        TokensieveError: an engine that this device does not have, an unknown model or method, or unreadable images.
    """
    setting = cell.setting
    runtime = setting.runtime(device)
    runtime.check()
    torch.manual_seed(0)
    dense: nn.Module = create(ModelOptions(setting.model, checkpoint=checkpoint, img_size=setting.img_size))
    dense = runtime.place(pixel_model(dense, Depth()) if setting.head == "depth" else dense)
    asked = {spec: parse(spec) for spec in cell.methods}
    ragged = any(method.ragged for chosen in asked.values() for method in chosen)
    sample = runtime.send(_images(setting, data, dense, max(setting.batch, COUNTED_IMAGES if ragged else 1)))
    told = {
        "weights": "random" if checkpoint is None else f"the file {Path(checkpoint).name}",
        "images": "random numbers" if data is None else f"photographs, the folder {Path(data).name}",
    }
    variants, specs = [], {DENSE: DENSE}
    with torch.no_grad():
        base = count(dense, sample[:1])
        for spec, methods in asked.items():
            counted = sample if any(method.ragged for method in methods) else sample[:1]
            chosen = methods if cell.factor is None else at_factor(dense, methods, cell.factor, counted)
            model = reduce(dense, chosen)
            name = spec if cell.factor is None else spell(chosen)
            specs[name] = spec
            variants.append(Variant(name, model, count(model, counted)))
    return Subject(dense, sample[: setting.batch], runtime, base, tuple(variants), specs, told)


def at_factor(dense: nn.Module, methods: tuple[Method, ...], factor: float, x: Tensor) -> tuple[Method, ...]:
    """The composition with its knob set to 1/``factor`` of the dense MACs.

    Raises:
        TokensieveError: it comes no nearer than 5 %.
    """
    found = solve(dense, methods, 1 / factor, x)
    reached = count(dense, x[:1]).total / count(reduce(dense, found), x).total
    if abs(factor / reached - 1) > NEAR:
        raise TokensieveError(f"{spell(methods)} comes no nearer to F {factor:g} than {spell(found)}")
    return found


def _images(setting: Setting, data: str | None, dense: nn.Module, images: int) -> Tensor:
    if data is None:
        return torch.randn(images, 3, setting.img_size, setting.img_size)
    arguments = DataOptions(data=data, img_size=setting.img_size, batch_size=min(images, 64), workers=0, limit=images)
    return open_images(arguments, dense.backbone if isinstance(dense, PixelModel) else dense).first(images)
