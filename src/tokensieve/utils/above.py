"""The ways up. A room imports nothing that stands above it; what it reaches there all the same is named here alone.

Each of these is content that a user asks for by a word of its own (a model's name, a data set's, a stage's, the kind of
a saved model), so that the room below knows the word and not the code.
"""

from __future__ import annotations

import importlib
from typing import Any

ABOVE: dict[str, tuple[str, ...]] = {
    # importing these enters their names in timm's registry
    "model names": ("tokensieve.prototype", "tokensieve.demo.model"),
    # has open_split(split)
    "data set digits": ("tokensieve.demo.digits",),
    # has from_config(backbone, config), for the key "dense" of a saved model
    "saved dense": ("tokensieve.pixels.model",),
    # has apply(model, methods, …), applied(model) and encoder_of(model), of methods wherever they act
    "placed methods": ("tokensieve.language.apply",),
    # has check_model(model) and DenseDINO(model, recipe)
    "stage pretrain": ("tokensieve.prototype.densedino",),
}


def above(what: str) -> Any:
    """The modules that ``what`` of the table stands for, imported; the last of them is returned."""
    return [importlib.import_module(module) for module in ABOVE[what]][-1]
