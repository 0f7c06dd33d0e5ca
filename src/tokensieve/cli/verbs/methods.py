"""``tokensieve methods``: what there is, from the registry."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import MethodsOptions


@verb(MethodsOptions)
def command(options: MethodsOptions) -> None:
    """List the methods, or show the card of one with its options, their types, defaults and meanings."""
    from tokensieve.cli.methods import methods  # here, so that the help is shown without torch

    methods(options.name)
