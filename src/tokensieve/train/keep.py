"""The keep rate while training: constant, or eased in from removing nothing at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from tokensieve.engine.apply import sites
from tokensieve.errors import TokensieveError
from tokensieve.methods._method import Method
from tokensieve.train.recipe import Recipe


def strength(epoch: float, start: float, length: float) -> float:
    """How much of its final share a method removes at ``epoch``: 0 until ``start``, then along a cosine to 1.

    EViT's schedule of the keep rate (arXiv 2202.07800), 1 − (1 − keep) · strength.
    """
    if epoch < start:
        return 0.0
    if epoch >= start + length:
        return 1.0
    return 0.5 * (1 - math.cos(math.pi * (epoch - start) / length))


def weakened(method: Method, strength: float) -> Method:
    """``method`` with its knob between removing nothing (0) and its own value (1)."""
    if strength == 1 or method.knob is None:
        return method
    own = getattr(method, method.knob)
    return dataclasses.replace(method, **{method.knob: _between(own, method.knob, strength)})


def _between(value: Any, knob: str, strength: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_between(entry, knob, strength) for entry in value)
    return round(value * strength) if knob == "r" else 1 - (1 - value) * strength


def use(model: nn.Module, methods: Sequence[Method]) -> None:
    """Let the sites of ``model`` act with ``methods``: the ones applied to it, in order, with other options."""
    for site in sites(model):
        before, steps = site.reduction.methods, site.turns.steps
        site.take([dataclasses.replace(s, method=methods[before.index(s.method)]) for s in steps], methods)


class Easing:
    """Sets the strength of a model's methods step by step.

    Args:
        model: a reduced model; its methods are those of full strength.
        recipe: says when the methods set in.
        steps_per_epoch: updates of one epoch.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps_per_epoch: int) -> None:
        self._model = model
        self._recipe = recipe
        self._steps_per_epoch = steps_per_epoch
        found = sites(model)
        self._methods = found[0].reduction.methods if found else ()
        if recipe.eased and not any(method.knob for method in self._methods):
            raise TokensieveError("the recipe eases a method in, and there is none with a keep rate: set ease_epochs 0")

    def __call__(self, step: int) -> float:
        """Set the strength of update ``step`` and return it."""
        share = strength(step / self._steps_per_epoch, self._recipe.ease_start, self._recipe.ease_epochs)
        if self._recipe.eased:
            use(self._model, [weakened(method, share) for method in self._methods])
        return share

    def finish(self) -> None:
        """Back to full strength."""
        if self._recipe.eased:
            use(self._model, self._methods)
