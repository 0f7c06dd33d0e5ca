"""The option that sets how much a composition removes, and every setting it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokensieve.errors import TokensieveError
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell

STEPS = 1000  # keep is set to three decimals


@dataclass(frozen=True)
class Knob:
    """The knob of a composition: that of its last method which has one; everything else stays.

    Attributes:
        methods: the composition.
        place: which of its methods is turned.
        name: the option: "keep", "r" or "threshold".
    """

    methods: tuple[Method, ...]
    place: int
    name: str

    @staticmethod
    def of(methods: Sequence[Method]) -> Knob:
        """The knob of ``methods``.

        Raises:
            TokensieveError: none of them has one.
        """
        turned = [number for number, method in enumerate(methods) if method.knob is not None]
        if not turned:
            raise TokensieveError(f"{spell(tuple(methods))} has no option that sets its cost")
        return Knob(tuple(methods), turned[-1], str(methods[turned[-1]].knob))

    def settings(self, patches: int) -> list[float] | list[int]:
        """Every value, from the one that removes nothing to the one that leaves nothing of ``patches`` tokens."""
        if self.name == "keep":
            return [step / STEPS for step in range(STEPS, -1, -1)]
        if self.name == "threshold":  # a cosine: nothing is above one
            return [step / STEPS for step in range(STEPS + 1, -STEPS - 1, -1)]
        return list(range(patches + 1))

    def turn(self, value: Any) -> tuple[Method, ...]:
        """The composition with the knob at ``value``."""
        changed = dataclasses.replace(self.methods[self.place], **{self.name: value})  # type: ignore[type-var]
        return (*self.methods[: self.place], changed, *self.methods[self.place + 1 :])
