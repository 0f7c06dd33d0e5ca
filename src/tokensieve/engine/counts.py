"""How many tokens a schedule leaves to every block, worked out from the configs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokensieve.errors import TokensieveError
from tokensieve.methods._method import POINTS
from tokensieve.tokens.decision import return_point

if TYPE_CHECKING:
    from tokensieve.engine.schedule import Step
from tokensieve.families._layout import Layout


@dataclass(frozen=True)
class Counts:
    """Tokens of a schedule, from the configs alone; for a ragged method the most there may be.

    Attributes:
        blocks: (tokens in attention, tokens in the MLP) of every block, prefix included.
        steps: (block, key of the step) to the patch tokens (before it, after it).
    """

    blocks: tuple[tuple[int, int], ...]
    steps: dict[tuple[int, str], tuple[int, int]]

    @property
    def acting(self) -> int:
        """How many steps remove something; the others are passed over and cost nothing."""
        return sum(after < before for before, after in self.steps.values())


def counts(
    placed: dict[int, tuple[Step, ...]], layout: Layout, *, patches: int | None = None, multiple: int | None = None
) -> Counts:
    """Walk the token counts through the blocks.

    With ``multiple`` every count behind a site, prefix included because that is the length attention and MLP run on,
    is the schedule's own rounded up to a multiple. Rounding starts from the schedule's own counts each time, so it does
    not add up: a small r becomes a larger one at fewer sites, and those with nothing left to remove are passed over.

    Args:
        placed: what ``schedule`` gave.
        layout: the model's.
        patches: N; default those of the layout's grid.
        multiple: None for the schedule as it is.

    Raises:
        TokensieveError: a method leaves no token, or more than there are.
    """
    patches = layout.patches if patches is None else patches
    layout = layout.of(patches)

    def own(block: int, step: Step, present: int) -> int:
        left = step.method.remaining(present, step.ordinal, layout)
        if not 1 <= left <= present:
            raise TokensieveError(
                f"{step.method} leaves {left} of {present} tokens in block {block}: expected 1 to {present}; "
                "remove fewer"
            )
        return left

    exact = _walk(placed, layout, patches, own)
    if multiple is None:
        return exact

    def up(count: int) -> int:
        return -(-(count + layout.prefix) // multiple) * multiple - layout.prefix

    def rounded(block: int, step: Step, present: int) -> int:
        before, after = exact.steps[block, step.key]
        if after == before:
            return present
        return min(present, max(up(after), up(step.method.fewest(present))))

    return _walk(placed, layout, patches, rounded)


def _walk(
    placed: dict[int, tuple[Step, ...]], layout: Layout, present: int, leaves: Callable[[int, Step, int], int]
) -> Counts:
    """The counts of a schedule in which ``leaves(block, step, present)`` says how many tokens a step leaves."""
    blocks: list[tuple[int, int]] = []
    steps: dict[tuple[int, str], tuple[int, int]] = {}
    away: list[tuple[tuple[int, bool], int]] = []

    def back(due: tuple[int, bool]) -> int:
        nonlocal away
        due_now = sum(count for at, count in away if at <= due)
        away = [(at, count) for at, count in away if at > due]
        return due_now

    for block in range(layout.depth):
        attended = 0
        present += back((block, False))
        for point in POINTS:
            if point == "middle":
                attended = present
            for step in placed.get(block, ()):
                if step.method.point != point:
                    continue
                left = leaves(block, step, present)
                steps[block, step.key] = (present, left)
                until = step.method.returns_at(step.ordinal, layout)
                if until != "end":
                    away.append((return_point(until, block, point), present - left))
                present = left
            if point == "middle":
                present += back((block, True))
                blocks.append((layout.prefix + attended, layout.prefix + present))
    return Counts(tuple(blocks), steps)


class Rounding:
    """What every step leaves where counts are rounded to a ``multiple``; see ``counts``."""

    def __init__(self, placed: dict[int, tuple[Step, ...]], layout: Layout, multiple: int) -> None:
        self.placed, self.layout, self.multiple = placed, layout, multiple
        self.patches = layout.patches
        self.known = counts(placed, layout, multiple=multiple).steps

    def left(self, block: int, step: Step, patches: int) -> int:
        """Patch tokens that ``step`` leaves on an input of ``patches`` patches."""
        if patches == self.patches:
            return self.known[block, step.key][1]
        return counts(self.placed, self.layout, patches=patches, multiple=self.multiple).steps[block, step.key][1]
