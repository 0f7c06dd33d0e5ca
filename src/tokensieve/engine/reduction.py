"""What one ``apply`` settled for the whole model: every block with a site reads it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokensieve.engine.counts import Rounding, counts
from tokensieve.engine.schedule import Step
from tokensieve.errors import TokensieveError
from tokensieve.families._family import Family
from tokensieve.families._layout import Layout
from tokensieve.methods._method import Method
from tokensieve.tokens.state import Fill


@dataclass(frozen=True)
class Reduction:
    """How a model is reduced.

    Attributes:
        family: runs the blocks.
        layout: the model's.
        methods: the composition, in the order in which it acts.
        fill: what stands at the place of tokens that are gone for good.
        rounding: of the token counts, or None.
        masked: whether tokens dropped for good are masked and not removed while training.
        first: number of the first block with a site.
        taps: blocks whose output is a plain tensor with every token.
        plan: which method acts at which block.
        follows_head: whether ``fill`` was left to the head of the model, which users change.
    """

    family: Family
    layout: Layout
    methods: tuple[Method, ...]
    fill: Fill
    rounding: Rounding | None = None
    masked: bool = False
    first: int = 0
    taps: frozenset[int] = frozenset()
    follows_head: bool = False
    plan: Mapping[int, tuple[Step, ...]] = field(default_factory=dict)

    def acts(self, patches: int) -> bool:
        """Whether any method acts on an image of so many ``patches``."""
        if any(method.ragged for method in self.methods):
            return True
        return counts(dict(self.plan), self.layout, patches=patches).acting > 0


def fill_for(pools: bool) -> Fill:
    """What fills the places of tokens that are gone, for a head that pools over patches or does not."""
    return "mean" if pools else "last"


def settle(
    family: Family,
    layout: Layout,
    methods: tuple[Method, ...],
    plan: dict[int, tuple[Step, ...]],
    fill: Fill | str,
    pools: bool,
    multiple: int | None,
    masked: bool,
    taps: frozenset[int],
) -> Reduction:
    """The reduction that a user asks for; see ``apply.apply`` for ``fill``, ``multiple``, ``masked`` and ``taps``.

    Args:
        family, layout: of the model.
        methods: the composition.
        plan: what ``schedule`` gave for it.
        pools: whether the head of the model pools over patches.

    Raises:
        TokensieveError: an option is wrong, or does not go with a method.
    """
    if fill not in ("auto", "last", "mean"):
        raise TokensieveError(f"fill must be 'auto', 'last' or 'mean', got {fill!r}")
    rounding = None if multiple is None else _rounding(plan, layout, methods, multiple)
    if masked and any(method.ragged for method in methods):
        raise TokensieveError(
            "masked=True is for methods that leave the same number of tokens in every image; a ragged one masks its "
            "tokens itself while training: leave masked out"
        )
    chosen = fill_for(pools if fill == "auto" else fill == "mean")
    watched = (block for method in methods for block in method.watches(layout.depth))
    first = 0 if family.in_parts else min([*plan, *watched], default=layout.depth)
    return Reduction(family, layout, methods, chosen, rounding, masked, first, taps, fill == "auto", plan)


def _rounding(
    plan: dict[int, tuple[Step, ...]], layout: Layout, methods: tuple[Method, ...], multiple: int
) -> Rounding:
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise TokensieveError(f"multiple must be a whole number, 1 or more (8 and 16 are usual), got {multiple!r}")
    ragged = [method.name for method in methods if method.ragged]
    if ragged:
        raise TokensieveError(
            f"{ragged[0]} leaves another number of tokens in every image, which cannot be rounded: leave multiple out"
        )
    gridded = [method.name for method in methods if method.gridded]
    if gridded:
        raise TokensieveError(
            f"{gridded[0]} leaves a grid of tokens, whose number cannot be rounded: leave multiple out and choose "
            "keep so that rows times columns is the number wanted"
        )
    return Rounding(plan, layout, multiple)
