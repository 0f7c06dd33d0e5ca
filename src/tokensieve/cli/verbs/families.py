"""``tokensieve families``: the model families, from the registry."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.utils.options import NoOptions


@verb(NoOptions)
def command(options: NoOptions) -> None:
    """List the model families that can be reduced, with the block classes of each, and tokensieve's own backbones."""
    from tokensieve.cli.families import families  # here, so that the help is shown without torch

    families()
