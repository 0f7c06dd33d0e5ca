"""``tokensieve methods``: what there is, from the registry."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokensieve import registry
from tokensieve.cli.options import Verbose
from tokensieve.cli.output import new_table, show_table
from tokensieve.errors import TokensieveError
from tokensieve.method import Method
from tokensieve.schedule import REFERENCE_DEPTH


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show the card and options of one method.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """List the methods, or show the card of one with its options, their types and defaults."""
    if name is None:
        _list()
    else:
        _card(registry.method_class(name))


def _list() -> None:
    table = new_table()
    for column in ("method", "paper", "needs training", f"sites of {REFERENCE_DEPTH} blocks", "knob"):
        table.add_column(column, overflow="fold")
    for name, method in registry.methods().items():
        table.add_row(name, _paper(method), "yes" if method.trained else "no", _sites(method), method.knob or "none")
    show_table(table)


def _card(method: type[Method]) -> None:
    console = Console()
    console.print(escape(method.card()), highlight=False)
    console.print()
    table = new_table("Options")
    for column in ("option", "type", "default"):
        table.add_column(column, overflow="fold")
    defaults = {f.name: f.default for f in dataclasses.fields(method)}
    for option, kind in method.option_types().items():
        default = defaults[option]
        shown = "required" if default is dataclasses.MISSING else str(default)
        table.add_row(option, escape(_type(kind)), escape(shown))
    show_table(table)


def _paper(method: type[Method]) -> str:
    if method.paper is None:
        return "control"
    title, authors, year, number = method.paper
    where = f", doi {number}" if "/" in number else f", arXiv {number}"
    return escape(f"{title} ({authors}, {year}{where})")


def _sites(method: type[Method]) -> str:
    try:
        blocks = method().blocks(REFERENCE_DEPTH)
    except (TypeError, TokensieveError):
        return "as given"
    if blocks == tuple(range(REFERENCE_DEPTH)):
        return f"{method.point}, every block"
    return f"{method.point}, " + ", ".join(map(str, blocks))


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    return text.replace("typing.", "").replace("NoneType", "None")
