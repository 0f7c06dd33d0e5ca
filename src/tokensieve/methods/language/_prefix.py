"""The protocol of a prefix method: which features of an image a language model gets to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._layout import Grid
from tokensieve.methods._config import Config, require
from tokensieve.methods._counts import kept

Positions = Literal["kept", "compact"]


@dataclass(frozen=True)
class TowerSignals:
    """What the attention of one block of the tower says of N patches, before anything left.

    Attributes:
        importance: (B, N) class attention where the tower has a class token, else attention received; float32.
        keys: (B, N, D) keys, mean over heads, float32.
        class_token: whether ``importance`` is class attention.
    """

    importance: Tensor
    keys: Tensor
    class_token: bool


@dataclass(frozen=True)
class PrefixView:
    """The features of B images with N each, as the projector gives them.

    Attributes:
        method: the config that is asked.
        features: (B, N, C).
        count: how many tokens to keep of each image; of a method whose counts follow the image the most it may keep.
        text: (B) the embeddings (T, C) of the text around each image.
        grid: the axes along which the features lie, or None where the host does not say.
        signals: of the blocks of the tower that ``blocks`` of the method names, by number.
    """

    method: PrefixMethod
    features: Tensor
    count: int
    text: tuple[Tensor, ...]
    grid: Grid | None = None
    signals: Mapping[int, TowerSignals] = field(default_factory=dict)

    @property
    def tower(self) -> TowerSignals:
        """The signals of the block of the tower that the method names, for one that reads a single block.

        Raises:
            RefusedError: the features of an image are not the patches of one picture in the tower.
        """
        if not self.signals:
            raise RefusedError(
                f"{self.method.name} reads the attention of the tower for every feature, and here a feature is not a "
                "patch of one picture (tiles, pooling or packed images): choose a method that reads features alone, "
                "divprune for one"
            )
        (seen,) = self.signals.values()
        return seen


@dataclass(frozen=True)
class Kept:
    """What stays of B images.

    Attributes:
        places: (B, K) int64, ascending: the features whose places the kept tokens have.
        values: (B, K, C) what stands there, or None for the features themselves. A token that a method adds has the
            place of one that it dropped.
    """

    places: Tensor
    values: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PrefixMethod(Config, ABC):
    """Base of every method that acts between the projector and the decoder. One frozen dataclass in one file.

    Options of all of them:
        keep: share of an image's tokens to keep, in (0, 1]; or
        tokens: their number. One of the two is given.
        positions: "kept": tokens have the positions of the uncut sequence, and decoding goes on behind it; "compact":
            positions are counted anew over what is left.

    Class attributes, besides those of ``Config``:
        ragged: True when images may keep different numbers; then it is asked for one image at a time.
        reads_text: True when the text around the image matters.
    """

    keep: float | None = None
    tokens: int | None = None
    positions: Positions = "kept"

    knob: ClassVar[str | None] = "keep"
    ragged: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

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

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks of a tower of ``depth`` blocks whose attention ``choose`` reads. Default: none."""
        return ()

    @abstractmethod
    def choose(self, view: PrefixView) -> Kept:
        """Decide which ``view.count`` tokens of each image stay. Only called when that is fewer than there are."""


def in_order(places: Tensor) -> Tensor:
    """Chosen places (B, K), ascending."""
    return places.sort(dim=1).values
