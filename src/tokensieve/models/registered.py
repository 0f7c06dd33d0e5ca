"""Which names timm can build: its own, and those of this package that it learns of when one is asked for."""

from __future__ import annotations

import timm

from tokensieve.utils.above import above


def is_model(name: str) -> bool:
    """Whether timm has an architecture called ``name``, with or without the tag of its weights behind a dot.

    The names of ``tokensieve.prototype`` and of the demo enter timm's registry at the first name that it does not know.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        above("model names")
    return bool(timm.is_model(architecture))
