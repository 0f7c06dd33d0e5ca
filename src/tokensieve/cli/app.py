"""The command ``tokensieve``: a verb's module is imported when that verb is called, or its help is wanted."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokensieve._version import VERSION
from tokensieve.utils.processes import one_voice

VERBS = ("bench", "eval", "export", "methods", "families", "plan", "train", "show", "demo")  # a module each, here


class Verbs(TyperGroup):
    """The verbs, each a function of its module's name; each a module here with a function ``command``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every verb, in the order in which they are listed."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb of this name."""
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _loaded(cmd_name)
        return self.commands[cmd_name]


def _loaded(name: str) -> Any:
    module = importlib.import_module(f"tokensieve.cli.verbs.{name}")
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name)(module.command)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Verbs,
    name="tokensieve",
    help="Make a vision transformer cheaper by acting on its tokens, and measure what that costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


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
