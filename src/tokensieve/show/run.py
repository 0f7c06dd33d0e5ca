"""Run methods on images and collect what the pictures show. The only part of ``show`` that touches a model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
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
        config: how images are prepared for the model, see ``measure.transform.data_config``.
        names: what to call the model's classes; None for their numbers.
        predict: whether to caption rows with the predicted class, dense and reduced; pixel tasks get pictures.
        blocks: the blocks to show; default up to six sites, evenly spread, and the last site of pixel tasks.
        step: called after every row.

    Raises:
        TokensieveError: no variants for a dense model, some for one with methods, or one that does not fit the model.
    """
    if is_applied(model) and variants:
        spec = spell(applied(model))
        raise TokensieveError(
            f"the model has methods already ({spec}): leave --method out to show them, or give a dense model"
        )
    if not variants and not is_applied(model):
        raise TokensieveError("nothing to show: give at least one --method, such as bat:keep=0.7")
    dense = remove(copy.deepcopy(model)) if is_applied(model) else model
    located = family_of(model)
    layout = located.family.layout(located.owner)
    grid = plane_of(layout.grid, "show")
    channels = config["input_size"][0]
    if channels != 3:
        raise TokensieveError(f"show draws RGB images and this model takes {channels} channels: give one that takes 3")
    device = next(model.parameters()).device
    inputs = [model_input(image, config).to(device) for _, image in images]
    views = [model_view(image, config) for _, image in images]
    task = dense.task if isinstance(dense, PixelModel) else None
    predict = predict and task is None
    before = [f"dense: {_prediction(dense, x, names)}   ·   " if predict else "" for x in inputs]
    maps_before = [_pixel_prediction(dense, x) if task is not None else None for x in inputs]

    acting: set[int] = set()

    def row(index: int) -> Row:
        with torch.inference_mode():
            traced = trace(model, inputs[index])
        maps = site_maps(traced.events, grid)
        acting.update(site.block for site in maps)
        shown = choose(maps, blocks, MOST_SITES if task is None else 1)
        panels: tuple[Panel, ...] = ()
        expected = maps_before[index]
        if task is not None and expected is not None:
            panels = prediction_panels(task, expected, _pixel_prediction(model, inputs[index]))
        return Row(
            method=spell(applied(model)),
            image=images[index][0],
            picture=views[index],
            maps=tuple(shown),
            grid=grid,
            tokens=tuple(stage.attended for stage in traced.stages),
            dense=layout.prefix + layout.patches,
            caption=f"{before[index]}reduced: {_prediction(model, inputs[index], names)}" if predict else "",
            hidden=len(maps) - len(shown),
            panels=panels,
        )

    def rows_as_applied() -> Iterator[Row]:
        for index in range(len(images)):
            yield row(index)
            step()

    if is_applied(model):
        rows = list(rows_as_applied())
        _check_blocks(blocks, acting)
        return rows
    columns = []
    for methods in variants:
        apply(model, list(methods))
        try:
            columns.append(list(rows_as_applied()))
        finally:
            remove(model)
    _check_blocks(blocks, acting)
    return [column[index] for index in range(len(images)) for column in columns]


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
