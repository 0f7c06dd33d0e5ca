"""``tokensieve plan``: the gentlest setting of a method that is as fast as asked for, on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokensieve.cli import options as o
from tokensieve.cli.output import errors, new_table, note, show_table
from tokensieve.errors import TokensieveError
from tokensieve.models.checkpoint import save as save_model
from tokensieve.models.load import create
from tokensieve.models.runtime import Runtime
from tokensieve.plan.plan import SpeedPlan, make_plan


def plan(
    model: o.Model,
    method: Annotated[
        str,
        typer.Option(
            "--method", metavar="SPEC", help="NAME\\[:option=value]…; + composes. The knob of the last one is turned."
        ),
    ],
    target_speedup: Annotated[
        float | None,
        typer.Option("--target-speedup", help="Dense time over planned time. Default: measure the method as it is."),
    ] = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images at a time.")] = 16,
    multiple: Annotated[
        int | None, typer.Option("--multiple", min=1, help="Round token counts up to a multiple, 8 or 16 for example.")
    ] = None,
    fewer_sites: Annotated[
        bool,
        typer.Option("--fewer-sites", help="Also try every second, third or fourth of the sites, in larger steps."),
    ] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timings of each variant.")] = 5,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Write the planned model, as ts.save does.")
    ] = None,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    num_classes: o.NumClasses = None,
    in_chans: o.InChans = None,
    img_size: o.ImgSize = None,
    device: o.Device = "cpu",
    amp: o.Amp = False,
    amp_dtype: o.AmpDtype = "bfloat16",
    channels_last: o.ChannelsLast = False,
    torchcompile: o.TorchCompile = None,
    force: o.Force = False,
    verbose: o.Verbose = False,
) -> None:
    """Find the gentlest setting of a method that makes a model as fast as asked for, on this device.

    Times a handful of sequence lengths and the method once, fits a latency model, predicts every setting of the
    method's knob (keep or r), and measures the one it takes beside the dense model. Says so when no setting is fast
    enough. A plan holds for its device, precision and batch size. Images are random: accuracy is for eval to measure.
    """
    if save is not None and save.exists() and not force:
        raise TokensieveError(f"{save} exists: give another folder, or --force to replace it")
    runtime = Runtime(
        device=device, amp=amp, amp_dtype=amp_dtype, channels_last=channels_last, torchcompile=torchcompile
    )
    dense = create(
        model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
    )
    dense = runtime.place(dense)
    with errors.status("timing"):
        found = make_plan(
            dense,
            method,
            target_speedup=target_speedup,
            batch_size=batch_size,
            multiple=multiple,
            fewer_sites=fewer_sites,
            rounds=rounds,
            wrap=runtime.callable,
        )
    show_table(_latency_table(found, runtime))
    show_table(_schedule_table(found))
    for line in (_curve(found), _verdict(found)):
        Console().print(escape(line), soft_wrap=True, highlight=False)
    if save is not None:
        save_model(found.apply(dense.cpu()), save, force=force)
        note(f"written: {save}")


def _latency_table(found: SpeedPlan, runtime: Runtime) -> Table:
    latency = found.latency
    table = new_table(f"Latency at batch {found.batch_size}, {runtime.dtype}, {found.device}")
    table.add_column("what ran", overflow="fold")
    for name in ("measured ms", "fitted ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for sample in latency.samples:
        measured, fitted = sample.share * latency.dense, latency.curve(sample.work)
        table.add_row(escape(sample.name), f"{1000 * measured:.2f}", f"{1000 * fitted:.2f}")
    return table


def _schedule_table(found: SpeedPlan) -> Table:
    table = new_table("Tokens, prefix included")
    for name in ("blocks", "in attention", "in the MLP"):
        table.add_column(name, justify="right", no_wrap=True)
    first = 0
    for number, tokens in enumerate(found.blocks):
        if number + 1 == len(found.blocks) or found.blocks[number + 1] != tokens:
            table.add_row(f"{first}" if first == number else f"{first}–{number}", *map(str, tokens))
            first = number + 1
    return table


def _curve(found: SpeedPlan) -> str:
    latency, depth = found.latency, len(found.blocks)
    return (
        f"A block on n tokens: {1e6 * latency.fixed / depth:.1f} + {1e6 * latency.linear:.3f} n + "
        f"{1e6 * latency.quadratic:.5f} n² microseconds a batch; a site of the method: {1e3 * latency.site:.2f} ms; "
        f"largest error of the curve {100 * latency.error:.1f} %."
    )


def _verdict(found: SpeedPlan) -> str:
    rounded = "" if found.multiple is None else f", counts in multiples of {found.multiple}"
    return (
        f"{found.spec}{rounded}: predicted {found.predicted:.2f} times the speed of the dense model, measured "
        f"{found.measured:.2f}; the MACs promise {found.promised:.2f}."
    )
