"""Whether a method did what it declared: each check raises one sentence naming the method, and else does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokensieve.errors import TokensieveError
from tokensieve.families._layout import Grid
from tokensieve.methods._method import Method
from tokensieve.tokens.decision import Assignment, Decision, KeepMask, Until
from tokensieve.tokens.soft import SoftAssignment

if TYPE_CHECKING:
    from tokensieve.engine.counts import Rounding
    from tokensieve.tokens.state import Tokens


def check_grid(method: Method, tokens: Tokens, grid: Grid) -> None:
    """Refuse tokens that lie on no grid, for a method that acts on the ``grid`` of the model."""
    if tokens.grid is None:
        sides = " × ".join(map(str, grid))
        raise TokensieveError(
            f"{method.name} acts on the grid of patches, and {tokens.count} patches are not the {sides} "
            "of this model: give images of its own size, or take ts.remove, model.set_input_size and ts.apply"
        )


def check_decision(
    decision: Decision,
    keep: int,
    until: Until,
    method: Method,
    block: int,
    rounding: Rounding | None,
    count: int | None,
) -> None:
    """Refuse a decision that is not what the method said before.

    It leaves another number of patch tokens than ``keep`` (a ragged method may leave fewer, and while training one that
    relaxes its decision may leave all ``count`` of them), or its dropped tokens return elsewhere than ``until``.
    """
    if isinstance(decision, Assignment):
        left = decision.keep.shape[1]
        if (decision.moved is None) != (decision.onto is None):
            raise TokensieveError(
                f"{method.name} gave an assignment with {'onto' if decision.moved is None else 'moved'} alone: moved "
                "names the tokens that join others, onto the place in keep that each of them joins"
            )
        if until != decision.until:
            raise TokensieveError(
                f"{method.name} declares that dropped tokens return at {until!r} "
                f"but its assignment says {decision.until!r}"
            )
    elif isinstance(decision, SoftAssignment):
        left = decision.count
        if until != decision.until:
            raise TokensieveError(
                f"{method.name} declares that the tokens it mixes return at {until!r} "
                f"but its soft assignment says {decision.until!r}"
            )
        if left == count:
            return
    elif isinstance(decision, KeepMask):
        return
    else:
        raise TokensieveError(
            f"{method.name} answered with {decision!r} in block {block}: assign() gives an Assignment, a "
            "SoftAssignment, or while training a KeepMask"
        )
    if left != keep and rounding is not None:
        raise TokensieveError(
            f"{method.name} left {left} tokens in block {block} where multiple={rounding.multiple} asks "
            f"for {keep}: its assign() does not follow view.keep; leave multiple out"
        )
    if left > keep if method.ragged else left != keep:
        raise TokensieveError(
            f"{method.name} left {left} tokens in block {block} where its schedule says {keep}: "
            "remaining() and assign() must agree"
        )
