"""Which methods compose, at their defaults, and why the others are refused."""

from __future__ import annotations

from itertools import combinations

from tokensieve.engine.schedule import schedule
from tokensieve.errors import TokensieveError
from tokensieve.families._layout import Layout
from tokensieve.methods import _registry as registry

REFERENCE = Layout(depth=12, dim=192, heads=3, prefix=1, class_token=True, grid=(14, 14))  # DeiT-Tiny


def conflict(first: str, second: str, layout: Layout = REFERENCE) -> str | None:
    """Why two methods at their defaults do not compose in a model of this layout, or None where they do."""
    known = registry.list_methods()
    try:
        schedule((known[first](), known[second]()), layout)
    except TokensieveError as error:
        return str(error)
    return None


def conflicts(layout: Layout = REFERENCE) -> dict[tuple[str, str], str]:
    """Every pair of registered methods that is refused, in order of name, with the reason."""
    pairs = combinations(registry.list_methods(), 2)
    return {pair: reason for pair in pairs if (reason := conflict(*pair, layout)) is not None}
