"""The work of ``tokensieve show``."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tokensieve.cli.options import ShownModelOptions
from tokensieve.cli.output import note, progress_bars
from tokensieve.cli.show_answers import show_answers
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.methods._spec import sweep
from tokensieve.models.load import has_weights
from tokensieve.models.runtime import check_device
from tokensieve.models.source import source_of
from tokensieve.pixels.create import create_model
from tokensieve.pixels.model import PixelModel
from tokensieve.show.images import read_image
from tokensieve.show.run import class_names, show_rows
from tokensieve.show.write import check_output, write_rows


def show(options: ShownModelOptions) -> None:
    """Draw the picture and write it."""
    given = next((name for name in ("max_new_tokens", "text_encoder") if getattr(options, name)), None)
    if given is not None and not options.question:
        raise TokensieveError(f"--{given.replace('_', '-')} is for answers: give a --question, or leave it out")
    check_output(options.output, options.force)
    check_device(options.device)
    if options.question:
        show_answers(options)
        return
    variants = [variant for spec in options.method for variant in sweep(spec)]
    blocks = _numbers("--blocks", options.blocks)
    opened = [(path.name, read_image(path)) for path in options.images]
    net = create_model(options, options)
    trained = _tell_weights(options, net)
    classes = int(getattr(net, "num_classes", 0))
    names = None if options.class_map is None else class_names(options.class_map, classes)
    with progress_bars() as bars:
        bars.start("running", len(opened) * max(len(variants), 1))
        rows = show_rows(
            net.to(options.device),
            opened,
            variants,
            _transform(options, net),
            names=names,
            predict=trained and classes > 0,
            blocks=blocks,
            step=bars.advance,
        )
    write_rows(rows, options.output, f"{options.model}: what becomes of the patches", options.force)
    note(f"written: {options.output}")


def _transform(options: ShownModelOptions, model: nn.Module) -> dict[str, Any]:
    """How images are prepared; pixel tasks see the whole image, as they are evaluated."""
    config = data_config(model, options)
    if isinstance(model, PixelModel) and options.crop_pct is None:
        config |= {"crop_pct": 1.0, "crop_mode": "squash"}
    return config


def _tell_weights(options: ShownModelOptions, model: nn.Module) -> bool:
    """Whether the backbone is trained; says what is not."""
    trained = has_weights(options)
    if not trained:
        note("the weights are random: give --pretrained or --checkpoint FILE to see a trained model")
    elif isinstance(model, PixelModel) and source_of(options.model).kind != "saved":
        note("the head is random: give a folder that tokensieve train wrote to see a trained one")
    return trained


def _numbers(option: str, given: str | None) -> list[int] | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", given):
        raise TokensieveError(f"{option} must be block numbers with commas between, such as 3,6,9, got {given!r}")
    return [int(number) for number in given.split(",")]
