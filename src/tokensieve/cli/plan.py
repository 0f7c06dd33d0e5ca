"""The work of ``tokensieve plan``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokensieve.cli.options import PlannedModelOptions
from tokensieve.cli.output import errors, new_table, note, show_table
from tokensieve.errors import TokensieveError
from tokensieve.models.checkpoint import save
from tokensieve.models.load import create
from tokensieve.models.options import RuntimeOptions
from tokensieve.models.runtime import Runtime
from tokensieve.plan.plan import SpeedPlan, make_plan
from tokensieve.utils.options import values_of


def plan(options: PlannedModelOptions) -> None:
    """Make the plan and print it; write the planned model where that is asked for."""
    folder = options.save
    if folder is not None and folder.exists() and not options.force:
        raise TokensieveError(f"{folder} exists: give another folder, or --force to replace it")
    runtime = Runtime(**values_of(options, RuntimeOptions))
    dense = runtime.place(create(options))
    with errors.status("timing"):
        found = make_plan(
            dense,
            options.method,
            target_speedup=options.target_speedup,
            batch_size=options.batch_size,
            multiple=options.multiple,
            fewer_sites=options.fewer_sites,
            rounds=options.rounds,
            wrap=runtime.callable,
        )
    show_table(_latency_table(found, runtime))
    show_table(_schedule_table(found))
    for line in (_curve(found), _verdict(found)):
        Console().print(escape(line), soft_wrap=True, highlight=False)
    if folder is not None:
        save(found.apply(dense.cpu()), folder, force=options.force)
        note(f"written: {folder}")


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
