"""``tokensieve show``: a picture of what methods do to the patches of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tokensieve.cli import options as o
from tokensieve.errors import TokensieveError
from tokensieve.measure.model import create
from tokensieve.show.images import read_image
from tokensieve.show.run import class_names, data_config, show_rows
from tokensieve.show.write import check_output, write_rows
from tokensieve.spec import sweep


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="timm model name, hub name, or a folder from ts.save.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.")],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="NAME[:option=value[,value…]]…; commas sweep, + composes. Repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: one picture (.png) or one page (.html).")
    ] = Path("tokens.png"),
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: safetensors or a plain state dict.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Load timm's pretrained weights.")] = False,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the checkpoint, if not the model's.")] = None,
    img_size: Annotated[int | None, typer.Option(help="Input height and width; default the model's own.")] = None,
    mean: Annotated[str | None, typer.Option(help="Normalisation mean, such as 0.5 or 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Normalisation deviation, as --mean.")] = None,
    class_map: Annotated[
        Path | None, typer.Option(help="Class names in the order of the model's answers, one a line.")
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Blocks to show, such as 3,6,9; default up to six sites.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    verbose: o.Verbose = False,
) -> None:
    """Draw what methods do to the patches of images, site by site.

    One row for each image and method: which patches attend, are merged with which others, are skipped, are pruned,
    with token counts, and the predicted class of the dense and of the reduced model.

    Example: tokensieve show deit_tiny_patch16_224 cat.jpg --pretrained --method bat:keep=0.7 --method tome:r=13
    """
    console = Console(stderr=True)
    check_output(output, force)
    variants = [variant for spec in method or [] for variant in sweep(spec)]
    wanted = _numbers("--blocks", blocks)
    opened = [(path.name, read_image(path)) for path in images]
    net = create(
        model,
        pretrained=pretrained,
        checkpoint=None if checkpoint is None else str(checkpoint),
        num_classes=num_classes,
        img_size=img_size,
    )
    config = data_config(net, img_size, _channels("--mean", mean), _channels("--std", std))
    trained = pretrained or checkpoint is not None or Path(model).is_dir() or ":" in model
    if not trained:
        console.print("The weights are random: give --pretrained or --checkpoint FILE to see a trained model.")
    classes = int(getattr(net, "num_classes", 0))
    names = None if class_map is None else class_names(class_map, classes)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("running", total=len(opened) * max(len(variants), 1))
        rows = show_rows(
            net,
            opened,
            variants,
            config,
            names=names,
            predict=trained and classes > 0,
            blocks=wanted,
            step=lambda: progress.advance(task),
        )
    write_rows(rows, output, f"{model}: what becomes of the patches", force)
    Console().print(f"wrote {output}", highlight=False, soft_wrap=True)


def _numbers(option: str, given: str | None) -> list[int] | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", given):
        raise TokensieveError(f"{option} must be block numbers with commas between, such as 3,6,9, got {given!r}")
    return [int(number) for number in given.split(",")]


def _channels(option: str, given: str | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    try:
        values = tuple(float(value) for value in given.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or (option == "--std" and min(values) <= 0):
        raise TokensieveError(f"{option} must be one number or three with commas between, got {given!r}")
    return values * (3 // len(values))
