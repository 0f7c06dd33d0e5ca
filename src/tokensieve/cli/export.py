"""The work of ``tokensieve export``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokensieve.cli.options import ExportedModelOptions
from tokensieve.cli.output import errors, new_table, note, progress_bars, show_table
from tokensieve.engine.probe import probe_input
from tokensieve.errors import TokensieveError
from tokensieve.export.check import random_images
from tokensieve.export.run import Exported, check_request, export_model
from tokensieve.export.speed import Realised, beside_dense
from tokensieve.language.apply import applied, apply
from tokensieve.language.sieved import plan_of
from tokensieve.methods._config import Config
from tokensieve.methods._spec import parse_placed, spell
from tokensieve.models.load import create, has_weights


def export(options: ExportedModelOptions) -> None:
    """Export the model, time it, and print both."""
    check_request(options.output, options.format, options.opset, options.force)
    methods = parse_placed(options.method) if options.method else ()
    net = create(options)
    _apply(net, methods)
    if not has_weights(options):
        note("the weights are random: give --pretrained or --checkpoint FILE")
    spec = spell(applied(net))
    with errors.status(f"exporting {spec} …"):
        exported = export_model(net, options.output, format=options.format, opset=options.opset, force=options.force)
    title = f"{options.model}, {spec}"
    if plan_of(net) is None:
        _show(title, exported, _timed(net, exported, options.batches, options.rounds) if options.timing else [])
    else:
        _show_features(title, exported)
    note("written: " + ", ".join(map(str, exported.form.files(options.output))))


def _apply(model: nn.Module, methods: tuple[Config, ...]) -> None:
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


def _show_features(title: str, exported: Exported) -> None:
    """The file of a tower and what is kept in front of a decoder, which is not timed: what it saves is saved there."""
    agreement = exported.agreement
    table = new_table(title)
    for name in ("format", "file size", "max difference", "same tokens"):
        table.add_column(name, justify="left" if name == "format" else "right", no_wrap=True)
    size, compared = f"{exported.size / 1e6:.1f} MB", f"yes, {agreement.images} pictures"
    table.add_row(exported.form.name, size, f"{agreement.difference:.1e}", compared)
    show_table(table)


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
