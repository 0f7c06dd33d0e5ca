"""``tokensieve export``: a reduced model as a file for another runtime, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from tokensieve.cli import options as o
from tokensieve.cli.output import errors, new_table, note, progress_bars, show_table
from tokensieve.engine.apply import applied, apply
from tokensieve.engine.probe import probe_input
from tokensieve.errors import TokensieveError
from tokensieve.export.check import random_images
from tokensieve.export.run import FORMATS, Exported, check_request, export_model
from tokensieve.export.speed import Realised, beside_dense
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell
from tokensieve.models.load import create


def export(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file: .pt2, .onnx or .xml.")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="SPEC", help="NAME\\[:option=value]…; + composes. A folder from ts.save has its own."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}. Default: by the ending of the file, torch for .pt2."),
    ] = None,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    num_classes: o.NumClasses = None,
    in_chans: o.InChans = None,
    img_size: o.ImgSize = None,
    opset: Annotated[int | None, typer.Option("--opset", help="Of ONNX. Default: the exporter's.")] = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time the file beside the dense model in the same format.")
    ] = True,
    speed_batch_size: Annotated[
        list[int] | None,
        typer.Option("--speed-batch-size", min=1, help="Batch size to time; repeatable. Default: 1 and 16."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of each model.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
    verbose: o.Verbose = False,
) -> None:
    """Write a reduced model to a file that runs without tokensieve, for any batch size.

    The file is opened again in its own runtime and must answer as the model does, on images and batch sizes that it was
    not traced with; otherwise none is left. S is the speed-up over the dense model, once both in PyTorch and once
    both exported; F is what the MACs promise; "kept" is the share of S/F that survives the export.
    """
    check_request(output, format, opset, force)
    methods = parse(method) if method else ()
    net = create(
        model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
    )
    _apply(net, methods)
    if not (pretrained or checkpoint or Path(model).is_dir() or ":" in model):
        note("the weights are random: give --pretrained or --checkpoint FILE")
    with errors.status(f"exporting {spell(applied(net))} …"):
        exported = export_model(net, output, format=format, opset=opset, force=force)
    realised = _timed(net, exported, tuple(dict.fromkeys(speed_batch_size or (1, 16))), rounds) if timing else []
    _show(f"{model}, {spell(applied(net))}", exported, realised)
    note("written: " + ", ".join(map(str, exported.form.files(output))))


def _apply(model: nn.Module, methods: tuple[Method, ...]) -> None:
    present = applied(model)
    if present and methods:
        raise TokensieveError(f"the saved model has {spell(present)} applied already: leave --method out")
    if not present and not methods:
        raise TokensieveError("no method given: name one, such as --method bat:keep=0.7, or a folder from ts.save")
    if methods:
        apply(model, methods)


def _timed(model: nn.Module, exported: Exported, batches: Sequence[int], rounds: int) -> list[Realised]:
    images = random_images(max(batches), probe_input(model))
    with progress_bars() as bars:
        bars.start("timing", rounds * 4 * len(batches))
        return list(beside_dense(model, exported, images, batches, rounds=rounds, on_round=bars.advance))


def _show(title: str, exported: Exported, realised: Sequence[Realised]) -> None:
    agreement = exported.agreement
    table = new_table(title)
    table.add_column("format")
    for name in ("file size", "max difference", "same top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    size = f"{exported.size / 1e6:.1f} MB"
    same = "yes" if agreement.same_top1 else "no"
    table.add_row(exported.form.name, size, f"{agreement.difference:.1e}", f"{same}, {agreement.images} images")
    show_table(table)
    if not realised:
        return
    table = new_table("Speed-up over the dense model")
    columns = ("batch", "F", "S in PyTorch", f"S in {exported.form.title}", "S/F in PyTorch", "S/F exported", "kept")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for at in realised:
        table.add_row(
            f"{at.batch}" + (" ~" if at.noisy else ""),
            f"{at.F:.2f}",
            f"{at.S_eager:.2f}",
            f"{at.S_exported:.2f}",
            f"{at.S_eager / at.F:.2f}",
            f"{at.S_exported / at.F:.2f}",
            f"{at.kept:.2f}",
        )
    if any(at.noisy for at in realised):
        table.caption = "~ noisy: the rounds lie more than 10 % apart; close other programs, or use more --rounds"
        table.caption_justify = "left"
    show_table(table)
