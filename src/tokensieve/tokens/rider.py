"""Riders: what travels with the tokens through the blocks and concerns the feature that put it there alone.

A rider lives in the file of its feature. It is an immutable dataclass, made known to torch by ``node.register``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tokensieve.tokens.decision import Assignment, Decision

if TYPE_CHECKING:
    from tokensieve.attention.signals import Attended


@dataclass(frozen=True)
class Moment:
    """Where in the model something happens: the block, the point in it, and the method that acts, for the record."""

    block: int = 0
    point: str = "middle"
    method: str = ""


class Rider:
    """What rides along. By default it rides on unchanged, whatever happens to the tokens.

    Class attributes:
        attends: whether ``attend`` wants to see the attention of every block.
    """

    attends: ClassVar[bool] = False

    def follow(self, decision: Decision, moment: Moment) -> Rider | None:
        """What becomes of it where tokens follow a decision; None where it ends there."""
        return self

    def returned(self, block: int, after_attention: bool) -> Rider | None:
        """What becomes of it where parked tokens return, see ``restore.returning``; None where it ends there."""
        return self

    def hide(self, assignment: Assignment, moment: Moment) -> Rider | None:
        """What becomes of it where tokens are hidden and not removed, see ``hide.hide``; None where it ends there."""
        return self

    def attend(self, attended: Attended) -> Rider:
        """What becomes of it behind the attention of a block."""
        return self


def riding_on(riders: Mapping[str, Rider], becomes: Callable[[Rider], Rider | None]) -> dict[str, Rider]:
    """What each rider ``becomes``, by name, without those that end."""
    return {name: after for name, rider in riders.items() if (after := becomes(rider)) is not None}
