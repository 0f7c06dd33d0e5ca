"""The tables of ``tokensieve families``."""

from __future__ import annotations

from rich.markup import escape

from tokensieve.cli.output import new_table, show_table
from tokensieve.families._locate import list_families
from tokensieve.prototype.backbones import own_backbones


def families() -> None:
    """Print the model families with the block classes of each, and tokensieve's own backbones."""
    table = new_table()
    for column in ("family", "models", "blocks"):
        table.add_column(column, overflow="fold")
    for name, family in list_families().items():
        lacking = family.lacking()
        extra = "tokensieve[transformers]" if lacking == "transformers" else lacking
        hint = "" if lacking is None else f" ({lacking} is not installed: pip install '{extra}')"
        table.add_row(name, escape(family.description + hint), ", ".join(family.block_names()))
    show_table(table)
    backbones = new_table("Backbones of tokensieve's own, by timm's names")
    for column in ("models", "architecture"):
        backbones.add_column(column, overflow="fold")
    for architecture, names in own_backbones().items():
        backbones.add_row(", ".join(names), architecture)
    show_table(backbones)
