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

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        names: Any = dict.fromkeys(VERBS)  # names alone, until one is called
        self.commands = names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb of this name, or None."""
        if cmd_name in VERBS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _loaded(cmd_name)
        return self.commands.get(cmd_name)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, which is false where it is not given: typer would load pydantic to read None as true or false."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


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
