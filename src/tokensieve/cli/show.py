"""``tokensieve show``: a picture of what methods do to the patches of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli import options as o
from tokensieve.cli.output import note, progress_bars
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.methods._spec import sweep
from tokensieve.models.load import has_weights, is_saved
from tokensieve.models.runtime import check_device
from tokensieve.pixels.arguments import TaskArguments, create_model
from tokensieve.pixels.model import PixelModel
from tokensieve.show.images import read_image
from tokensieve.show.run import class_names, show_rows
from tokensieve.show.write import check_output, write_rows


def show(
    model: o.Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    method: o.Methods = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: one picture (.png) or one page (.html).")
    ] = Path("tokens.png"),
    blocks: Annotated[
        str | None,
        typer.Option("--blocks", metavar="N[,N]…", help="Blocks to show, such as 3,6,9. Default: up to six sites."),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option("--class-map", metavar="FILE", help="Class names in the order of the model's answers."),
    ] = None,
    task: o.Task = None,
    head: o.Head = None,
    max_depth: o.MaxDepth = None,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    num_classes: o.NumClasses = None,
    img_size: o.ImgSize = None,
    crop_pct: o.CropPct = None,
    interpolation: o.Interpolation = None,
    mean: o.Mean = None,
    std: o.Std = None,
    device: o.Device = "cpu",
    force: o.Force = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw what methods do to the patches of images, site by site.

    One row for each image and method: which patches attend, are merged with which others, are skipped, are pruned,
    with token counts, and the predicted class of the dense and of the reduced model. Of a pixel task (segmentation,
    depth): the image, the dense prediction, the reduced one, where they differ, and the patches.

    Example: tokensieve show deit_tiny_patch16_224 cat.jpg --pretrained --method bat:keep=0.7 --method tome:r=13
    """
    check_output(output, force)
    check_device(device)
    variants = [variant for spec in method or [] for variant in sweep(spec)]
    wanted = _numbers("--blocks", blocks)
    opened = [(path.name, read_image(path)) for path in images]
    net = create_model(
        model,
        TaskArguments(task=task, head=head, max_depth=max_depth),
        pretrained=pretrained,
        checkpoint=checkpoint,
        num_classes=num_classes,
        img_size=img_size,
    )
    config = data_config(net, img_size=img_size, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std)
    if isinstance(net, PixelModel) and crop_pct is None:  # pixel tasks see the whole image, as they are evaluated
        config |= {"crop_pct": 1.0, "crop_mode": "squash"}
    trained = has_weights(model, pretrained, checkpoint)
    if not trained:
        note("the weights are random: give --pretrained or --checkpoint FILE to see a trained model")
    elif isinstance(net, PixelModel) and not is_saved(model):
        note("the head is random: give a folder that tokensieve train wrote to see a trained one")
    classes = int(getattr(net, "num_classes", 0))
    names = None if class_map is None else class_names(class_map, classes)
    with progress_bars() as bars:
        bars.start("running", len(opened) * max(len(variants), 1))
        rows = show_rows(
            net.to(device),
            opened,
            variants,
            config,
            names=names,
            predict=trained and classes > 0,
            blocks=wanted,
            step=bars.advance,
        )
    write_rows(rows, output, f"{model}: what becomes of the patches", force)
    note(f"written: {output}")


def _numbers(option: str, given: str | None) -> list[int] | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", given):
        raise TokensieveError(f"{option} must be block numbers with commas between, such as 3,6,9, got {given!r}")
    return [int(number) for number in given.split(",")]
