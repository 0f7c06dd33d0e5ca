"""Run methods on images and collect what the pictures show. The only part of ``show`` that touches a model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from tokensieve.engine.apply import applied, apply, is_applied, remove
from tokensieve.engine.trace import trace
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.methods._view import plane_of
from tokensieve.pixels.model import PixelModel
from tokensieve.show.images import model_input, model_view
from tokensieve.show.maps import MOST_SITES, Panel, Row, choose, site_maps
from tokensieve.show.pixels import prediction_panels

WNID = re.compile(r"n\d{8}")


def class_names(path: Path, classes: int) -> list[str]:
    """What to call each class: the lines of a class map, ImageNet's synset numbers replaced by words.

    Raises:
        TokensieveError: the file cannot be read, or names another number of classes than the model has.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TokensieveError(f"cannot read the class map {path}: give a text file with one class a line") from error
    if len(names) != classes:
        raise TokensieveError(
            f"the class map {path} names {len(names)} classes and the model has {classes}: "
            "give the map that the model was trained with"
        )
    if not all(WNID.fullmatch(name) for name in names):
        return names
    info = ImageNetInfo("imagenet-22k")
    return [info.label_name_to_description(name, detailed=False).split(",")[0] for name in names]


def show_rows(
    model: nn.Module,
    images: Sequence[tuple[str, Image.Image]],
    variants: Sequence[Sequence[Method]],
    config: dict[str, Any],
    *,
    names: Sequence[str] | None = None,
    predict: bool = True,
    blocks: Sequence[int] | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """One row per (image, variant), images first. The model is handed back as it came.

    Args:
        model: a model in eval mode; dense, or with methods applied when ``variants`` is empty.
        images: names and RGB images.
        variants: compositions of methods; empty for the methods that are applied already.
        config: how images are prepared for the model, see ``data.transforms.data_config``.
        names: what to call the model's classes; None for their numbers.
        predict: whether to caption rows with the predicted class, dense and reduced; pixel tasks get pictures.
        blocks: the blocks to show; default up to six sites, evenly spread, and the last site of pixel tasks.
        step: called after every row.

    Raises:
        TokensieveError: no variants for a dense model, some for one with methods, or one that does not fit the model.
    """
    dense = _dense_of(model, variants, config)
    cast = _Cast(model, dense, images, config, names, predict, blocks)

    def rows() -> list[Row]:
        found = []
        for index in range(len(images)):
            found.append(cast.row(index))
            step()
        return found

    columns: list[list[Row]] = []
    if not variants:
        columns.append(rows())
    for methods in variants:
        apply(model, list(methods))
        try:
            columns.append(rows())
        finally:
            remove(model)
    _check_blocks(blocks, cast.acting)
    return [column[index] for index in range(len(images)) for column in columns]


def _dense_of(model: nn.Module, variants: Sequence[Sequence[Method]], config: dict[str, Any]) -> nn.Module:
    """The dense model to compare with: ``model`` itself, or a copy without the methods that it has.

    Raises:
        TokensieveError: no variants for a dense model, some for one with methods, or one that takes no RGB images.
    """
    if is_applied(model) and variants:
        spec = spell(applied(model))
        raise TokensieveError(
            f"the model has methods already ({spec}): leave --method out to show them, or give a dense model"
        )
    if not variants and not is_applied(model):
        raise TokensieveError("nothing to show: give at least one --method, such as bat:keep=0.7")
    dense = remove(copy.deepcopy(model)) if is_applied(model) else model
    located = family_of(dense)  # a model that cannot be reduced says so before anything about its images
    plane_of(located.family.layout(located.owner).grid, "show")
    channels = config["input_size"][0]
    if channels != 3:
        raise TokensieveError(f"show draws RGB images and this model takes {channels} channels: give one that takes 3")
    return dense


class _Cast:
    """The model and its images, with what the dense model says of each of them.

    Attributes:
        acting: the blocks at which a method removed something in any row so far.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        images: Sequence[tuple[str, Image.Image]],
        config: dict[str, Any],
        names: Sequence[str] | None,
        predict: bool,
        blocks: Sequence[int] | None,
    ) -> None:
        self.model, self.images, self.names, self.blocks = model, images, names, blocks
        located = family_of(model)
        self.layout = located.family.layout(located.owner)
        self.grid = plane_of(self.layout.grid, "show")
        device = next(model.parameters()).device
        self.inputs = [model_input(image, config).to(device) for _, image in images]
        self.views = [model_view(image, config) for _, image in images]
        # Of a pixel task the answers themselves are shown, of a classifier the class is told.
        self.task = dense.task if isinstance(dense, PixelModel) else None
        self.predict = predict and self.task is None
        self.classes = [_prediction(dense, x, names) for x in self.inputs] if self.predict else []
        self.answers = [_pixel_prediction(dense, x) for x in self.inputs] if self.task is not None else []
        self.acting: set[int] = set()

    def row(self, index: int) -> Row:
        """The row of one image under the methods that the model has now."""
        with torch.inference_mode():
            traced = trace(self.model, self.inputs[index])
        maps = site_maps(traced.events, self.grid)
        self.acting.update(site.block for site in maps)
        shown = choose(maps, self.blocks, MOST_SITES if self.task is None else 1)
        return Row(
            method=spell(applied(self.model)),
            image=self.images[index][0],
            picture=self.views[index],
            maps=tuple(shown),
            grid=self.grid,
            tokens=tuple(stage.attended for stage in traced.stages),
            dense=self.layout.prefix + self.layout.patches,
            caption=self._caption(index),
            hidden=len(maps) - len(shown),
            panels=self._panels(index),
        )

    def _caption(self, index: int) -> str:
        """The predicted class, dense and reduced."""
        if not self.predict:
            return ""
        reduced = _prediction(self.model, self.inputs[index], self.names)
        return f"dense: {self.classes[index]}   ·   reduced: {reduced}"

    def _panels(self, index: int) -> tuple[Panel, ...]:
        """The answers to a pixel task, dense and reduced."""
        if self.task is None:
            return ()
        return prediction_panels(self.task, self.answers[index], _pixel_prediction(self.model, self.inputs[index]))


def _check_blocks(blocks: Sequence[int] | None, acting: set[int]) -> None:
    idle = [block for block in blocks or () if block not in acting]
    if idle:
        raise TokensieveError(
            f"--blocks names {', '.join(map(str, idle))}, where no method removes a token: "
            f"choose among {', '.join(map(str, sorted(acting))) or 'none, for nothing is removed anywhere'}"
        )


def _pixel_prediction(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        prediction: Tensor = model.task.decide(model(x)[0].float().cpu())
    return prediction


def _prediction(model: nn.Module, x: Tensor, names: Sequence[str] | None) -> str:
    with torch.inference_mode():
        logits = model(x)
    share, index = logits.float().softmax(dim=1)[0].max(dim=0)
    name = names[int(index)] if names else f"class {int(index)}"
    return f"{name} {float(share):.1%}"
