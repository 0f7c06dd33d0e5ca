"""The table and the cards of ``tokensieve methods``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from tokensieve.cli.output import new_table, show_table
from tokensieve.errors import TokensieveError
from tokensieve.methods import _card as card
from tokensieve.methods import _registry as registry
from tokensieve.methods._config import Config
from tokensieve.methods._counts import REFERENCE_DEPTH
from tokensieve.methods._method import Method

READABLE = 100  # columns of running text
SHORT = {"before": "before", "middle": "in", "after": "after"}


def methods(name: str | None) -> None:
    """Print the methods, or the card of the one called ``name``."""
    if name is None:
        _list()
    else:
        _card(registry.placed_class(name))


def _list() -> None:
    table = new_table()
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=1)
    table.add_column(f"blocks of {REFERENCE_DEPTH}", overflow="fold", max_width=16)
    for column in ("option", "training", "arXiv"):
        table.add_column(column, no_wrap=True)
    for name, method in registry.list_methods().items():
        paper = "control" if method.paper is None else method.paper[3]
        where = f"{SHORT[method.point]} {_blocks(method)}"
        cells = (
            name,
            card.summary(method) + (" (reconstruction)" if registry.is_reconstruction(method) else ""),
            where,
            method.knob or "none",
            "needed" if method.trained else "none",
            paper,
        )
        table.add_row(*map(escape, cells))
    show_table(table)
    table = new_table("In vision-language models")
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=1)
    for column in ("acts", "arXiv"):
        table.add_column(column, no_wrap=True)
    for name, placed in registry.list_language_methods().items():
        paper = "control" if placed.paper is None else placed.paper[3]
        table.add_row(*map(escape, (name, card.summary(placed), card.place(placed), paper)))
    show_table(table)


def _card(method: type[Config]) -> None:
    console = Console()
    for paragraph in (*card.prose(method), _facts(method)):
        console.print(escape(" ".join(paragraph.split())), highlight=False, width=min(console.width, READABLE))
        console.print()
    table = new_table("Options")
    table.add_column("option", no_wrap=True)
    for column in ("type", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for option in card.options(method):
        table.add_row(*map(escape, (option.name, option.type, option.default, option.meaning)))
    show_table(table)


def _facts(method: type[Config]) -> str:
    if issubclass(method, Method):
        where = f"Acts {card.ACTS[method.point]}, in {_blocks(method)} of {REFERENCE_DEPTH} blocks."
    else:
        where = f"Acts {card.place(method)} of a vision-language model."
    if method.paper is None:
        return where
    title, authors, year, number = method.paper
    number = f"doi {number}" if "/" in number else f"arXiv {number}"
    return f"{where} Paper: {title} ({authors}, {year}, {number})."


def _blocks(method: type[Method]) -> str:
    try:
        blocks = method().blocks(REFERENCE_DEPTH)
    except (TypeError, TokensieveError):
        return "as given"
    return "all" if blocks == tuple(range(REFERENCE_DEPTH)) else ", ".join(map(str, blocks))
