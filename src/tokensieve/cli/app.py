"""The command ``tokensieve``: every verb is registered here."""

from __future__ import annotations

from typing import Annotated

import typer

from tokensieve._version import VERSION
from tokensieve.cli.bench import bench
from tokensieve.cli.demo import demo
from tokensieve.cli.errors import reported
from tokensieve.cli.eval import evaluate
from tokensieve.cli.export import export
from tokensieve.cli.families import families
from tokensieve.cli.methods import methods
from tokensieve.cli.plan import plan
from tokensieve.cli.show import show
from tokensieve.cli.train import train
from tokensieve.utils.processes import one_voice

app = typer.Typer(
    name="tokensieve",
    help="Make a vision transformer cheaper by acting on its tokens, and measure what that costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("bench")(reported(bench))
app.command("eval")(reported(evaluate))
app.command("export")(reported(export))
app.command("methods")(reported(methods))
app.command("families")(reported(families))
app.command("plan")(reported(plan))
app.command("train")(reported(train))
app.command("show")(reported(show))
app.command("demo")(reported(demo))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tokensieve {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """Make a vision transformer cheaper by acting on its tokens, and measure what that costs."""


def main() -> None:
    """Entry point of the console script."""
    with one_voice():
        app(prog_name="tokensieve")
