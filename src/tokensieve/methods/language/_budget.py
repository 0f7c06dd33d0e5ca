"""How many tokens of an image a method leaves: a share of them, or their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import Config, require
from tokensieve.methods._counts import kept

Positions = Literal["kept", "compact"]


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """A method that is told how many tokens of each image the decoder sees.

    Options of all of them:
        keep: share of an image's tokens to keep, in (0, 1]; or
        tokens: their number. One of the two is given.
        positions: "kept": tokens have the positions of the uncut sequence, and decoding goes on behind it; "compact":
            positions are counted anew over what is left.
    """

    keep: float | None = None
    tokens: int | None = None
    positions: Positions = "kept"

    knob: ClassVar[str | None] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.tokens is None):
            raise TokensieveError(
                f"{self.name}: give one of keep, a share of the tokens of each image (keep=0.25), and tokens, their "
                f"number (tokens=128); got keep={self.keep} and tokens={self.tokens}"
            )
        require(self.keep is None or 0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        require(self.tokens is None or self.tokens >= 1, self, "tokens", "1 or more")

    def count(self, features: int) -> int:
        """How many of so many ``features`` of an image stay; all where ``tokens`` is no smaller."""
        if self.tokens is not None:
            return min(self.tokens, features)
        assert self.keep is not None
        return kept(features, self.keep)
