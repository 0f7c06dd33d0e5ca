"""The protocol of an input method: what of a picture a vision-language model gets to see, in front of its tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tokensieve.families._layout import Grid as Grid
from tokensieve.methods._config import Config
from tokensieve.methods.language._budget import Positions


@dataclass(frozen=True, kw_only=True)
class InputMethod(Config, ABC):
    """Base of every method that acts on the pixels in front of the tower. One frozen dataclass in one file.

    What it leaves out goes neither through the tower nor to the decoder. It is a ``ResizingMethod`` or a
    ``PruningMethod``.

    Options of all of them:
        positions: "kept": tokens have the positions of the uncut sequence, and decoding goes on behind it; "compact":
            positions are counted anew over what is left.
    """

    positions: Positions = "kept"


@dataclass(frozen=True, kw_only=True)
class ResizingMethod(InputMethod, ABC):
    """Base of those that make pictures smaller."""

    @abstractmethod
    def size(self, grid: Grid, square: bool) -> Grid:
        """The axes along which the features of a picture lie once it is smaller.

        Args:
            grid: of the whole picture: (rows, columns), or (frames, rows, columns) of a video.
            square: whether the projector takes squares alone.

        Returns:
            As many axes, none longer; ``grid`` itself where nothing is to happen.
        """

    @abstractmethod
    def resized(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """The pictures (B, C, H, W) with so many rows and columns of pixels, in their dtype."""


@dataclass(frozen=True, kw_only=True)
class PruningMethod(InputMethod, ABC):
    """Base of those that leave patches out."""

    @abstractmethod
    def stays(self, pixels: Tensor) -> Tensor:
        """Which features of a picture, or of one frame of a video, are computed.

        Args:
            pixels: (R, C, P) the pixels that each feature is made of, along the rows and columns of the features.

        Returns:
            (R, C) bool, True for one at least.
        """
