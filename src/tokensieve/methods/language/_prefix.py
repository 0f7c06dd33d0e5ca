"""The protocol of a prefix method: which features of an image a language model gets to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid
from tokensieve.methods.language._budget import Budget


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
class Encoded:
    """Images and the text around them in the space where a model with two towers compares the two.

    Attributes:
        patches: (B, N, D) the last patches of the tower, projected.
        texts: (B) of (P, D): the embedding of each piece of the text that the text tower takes at once; P is 0 where
            there is no text.
        words: (B) of (T, D): the states of its single tokens, projected.
    """

    patches: Tensor
    texts: tuple[Tensor, ...]
    words: tuple[Tensor, ...]


@dataclass(frozen=True)
class PrefixView:
    """The features of B images with N each, as the projector gives them.

    Attributes:
        method: the config that is asked.
        features: (B, N, C).
        count: how many tokens to keep of each image; of a method whose counts follow the image the most it may keep.
        text: (B) the embeddings (T, C) of the text around each image.
        grid: the axes along which the features lie, or None where the host does not say.
        signals: of the blocks of the tower that ``blocks`` of the method names, by number. Where features are made of
            several patches each, the mean over these.
        encoded: the same images and text by the text encoder, or None where none was given.
    """

    method: PrefixMethod
    features: Tensor
    count: int
    text: tuple[Tensor, ...]
    grid: Grid | None = None
    signals: Mapping[int, TowerSignals] = field(default_factory=dict)
    encoded: Encoded | None = None

    @property
    def tower(self) -> TowerSignals:
        """The signals of the block of the tower that the method names, for one that reads a single block.

        Raises:
            RefusedError: the features of an image are neither the patches of one picture nor made of groups of them.
        """
        if not self.signals:
            raise RefusedError(
                f"{self.method.name} reads the attention of the tower for every feature, and here a feature is not a "
                "patch of one picture nor a known group of such (tiles joined with newlines, pooling by positions, "
                "resampling): choose a method that reads features alone, divprune for one"
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
class PrefixMethod(Budget, ABC):
    """Base of every method that acts between the projector and the decoder. One frozen dataclass in one file.

    Class attributes, besides those of ``Config``:
        ragged: True when images may keep different numbers; then it is asked for one image at a time.
        reads_text: True when the text around the image matters.
        encodes_text: True when it compares patches and text by a text encoder where one is given.
    """

    ragged: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    encodes_text: ClassVar[bool] = False

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks of a tower of ``depth`` blocks whose attention ``choose`` reads. Default: none. In place of one
        that attends in windows the nearest that attends to the whole image is read."""
        return ()

    @abstractmethod
    def choose(self, view: PrefixView) -> Kept:
        """Decide which ``view.count`` tokens of each image stay. Only called when that is fewer than there are."""


def in_order(places: Tensor) -> Tensor:
    """Chosen places (B, K), ascending."""
    return places.sort(dim=1).values
