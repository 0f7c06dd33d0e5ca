"""Specs are read before a model is built: this needs torch, and nothing that takes longer."""

from __future__ import annotations

from collections.abc import Sequence

from tokensieve.methods._method import Method
from tokensieve.methods._spec import sweep, sweep_placed

ALL = "all"  # as a spec: every method that needs no training


def check_specs(specs: Sequence[str], placed: bool) -> None:
    """Raise on a spec that is none.

    Args:
        specs: as they are given.
        placed: whether methods may act anywhere in a vision-language model, and not only in a ViT.

    Raises:
        TokensieveError: no such method, no such option, or a value that it cannot have.
    """
    for spec in specs:
        if spec != ALL:
            (sweep_placed if placed else sweep)(spec)


def swept(specs: Sequence[str]) -> list[tuple[Method, ...]]:
    """The variants that ``specs`` name, those of "all" apart.

    Raises:
        TokensieveError: no such method, no such option, or a value that it cannot have.
    """
    return [variant for spec in specs if spec != ALL for variant in sweep(spec)]
