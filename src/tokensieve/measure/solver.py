"""Methods at one budget: the knob of each turned until all cost the same share of the dense model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

from torch import Tensor, nn

from tokensieve.engine.apply import apply
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.families._locate import family_of
from tokensieve.measure.knob import Knob
from tokensieve.measure.macs import count
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.models.load import share_weights


def solve(model: nn.Module, methods: Sequence[Method], share: float, x: Tensor) -> tuple[Method, ...]:
    """The composition with its knob set so that it costs ``share`` of the dense MACs, as nearly as the knob allows.

    Args:
        model: the dense model.
        methods: the composition; the knob of its last method that has one is turned, everything else stays.
        share: MACs of the reduced model over those of the dense model, in (0, 1).
        x: (B, C, H, W) images to count on; one is enough for methods that are not ragged.

    Raises:
        RefusedError: the model cannot be reduced.
        TokensieveError: no method has a knob, or the share lies outside what the knob can reach.
    """
    check_share(share)
    try:
        knob = Knob.of(methods)
    except TokensieveError as error:
        raise TokensieveError(f"{error}; leave --macs out") from error
    family_of(model)  # a model that no token can leave is refused here
    dense = count(model, x)
    target = share * dense.total
    settings = knob.settings(round(dense.blocks[0].attended))

    @cache
    def cost(place: int) -> float:
        reduced = share_weights(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokensieveWarning)
            apply(reduced, knob.turn(settings[place]))
            return count(reduced, x).total

    def cost_or_nothing(place: int) -> float:
        try:
            return cost(place)
        except TokensieveError:  # removes more than there is: beyond the cheapest that works
            return 0.0

    # Bisection: settings remove more and more, so their cost falls with their place.
    if cost(0) < target:
        raise _unreachable(knob, share, f"at most {cost(0) / dense.total:.3f}")
    above, below = 0, len(settings) - 1
    while below - above > 1:
        middle = (above + below) // 2
        if cost_or_nothing(middle) < target:
            below = middle
        else:
            above = middle
    nearest = min((above, below), key=lambda place: abs(cost_or_nothing(place) - target))
    if not cost_or_nothing(below) and cost(above) > 1.01 * target:
        raise _unreachable(knob, share, f"at least {cost(above) / dense.total:.3f}")
    return knob.turn(settings[nearest])


def check_share(share: float) -> None:
    """Raise unless ``share`` is one that a reduced model could have."""
    if not 0 < share < 1:
        raise TokensieveError(f"--macs is a share of the dense model's MACs and must lie between 0 and 1, got {share}")


def _unreachable(knob: Knob, share: float, bound: str) -> TokensieveError:
    return TokensieveError(
        f"{spell(knob.methods)} costs {bound} of the dense model when {knob.name} is turned, and cannot reach {share}"
    )
