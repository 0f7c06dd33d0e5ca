"""Methods at one budget: the knob of each turned until all cost the same share of the dense model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

import tokensieve as ts
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure.macs import count
from tokensieve.measure.model import share_weights
from tokensieve.method import Method

STEPS = 1000  # keep is found to three decimals


def solve(model: nn.Module, methods: Sequence[Method], share: float, x: Tensor) -> tuple[Method, ...]:
    """The composition with its knob set so that it costs ``share`` of the dense MACs, as nearly as the knob allows.

    Args:
        model: the dense model.
        methods: the composition; the knob of its last method that has one is turned, everything else stays.
        share: MACs of the reduced model over those of the dense model, in (0, 1).
        x: (B, C, H, W) images to count on; one is enough for methods that are not ragged.

    Raises:
        TokensieveError: no method has a knob, or the share lies outside what the knob can reach.
    """
    check_share(share)
    turned = [number for number, method in enumerate(methods) if method.knob is not None]
    if not turned:
        raise TokensieveError(f"{ts.spell(tuple(methods))} has no option that sets its cost; leave --macs out")
    place = turned[-1]
    knob = str(methods[place].knob)
    dense = count(model, x)
    target = share * dense.total

    def with_knob(step: int) -> tuple[Method, ...]:
        value: Any = step / STEPS if knob == "keep" else step
        changed = dataclasses.replace(methods[place], **{knob: value})  # type: ignore[type-var]
        return (*methods[:place], changed, *methods[place + 1 :])

    @cache
    def cost(step: int) -> float:
        reduced = share_weights(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokensieveWarning)
            ts.apply(reduced, with_knob(step))
            return count(reduced, x).total

    def cost_or_nothing(step: int) -> float:
        try:
            return cost(step)
        except TokensieveError:  # removes more than there is: beyond the cheapest that works
            return 0.0

    # More of keep costs more, more of r costs less.
    dearest, cheapest = (STEPS, 0) if knob == "keep" else (0, round(dense.blocks[0].attended))
    if cost(dearest) < target:
        raise _unreachable(methods, knob, share, f"at most {cost(dearest) / dense.total:.3f}")
    above, below = dearest, cheapest
    while abs(above - below) > 1:
        middle = (above + below) // 2
        if cost_or_nothing(middle) < target:
            below = middle
        else:
            above = middle
    nearest = min((above, below), key=lambda step: abs(cost_or_nothing(step) - target))
    if not cost_or_nothing(below) and cost(above) > 1.01 * target:
        raise _unreachable(methods, knob, share, f"at least {cost(above) / dense.total:.3f}")
    return with_knob(nearest)


def check_share(share: float) -> None:
    """Raise unless ``share`` is one that a reduced model could have."""
    if not 0 < share < 1:
        raise TokensieveError(f"--macs is a share of the dense model's MACs and must lie between 0 and 1, got {share}")


def _unreachable(methods: Sequence[Method], knob: str, share: float, bound: str) -> TokensieveError:
    return TokensieveError(
        f"{ts.spell(tuple(methods))} costs {bound} of the dense model when {knob} is turned, and cannot reach {share}"
    )
