"""What one ``apply`` settled for the whole model: every block with a site reads it there."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.engine.counts import Rounding
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
    """

    family: Family
    layout: Layout
    methods: tuple[Method, ...]
    fill: Fill
    rounding: Rounding | None = None
    masked: bool = False
