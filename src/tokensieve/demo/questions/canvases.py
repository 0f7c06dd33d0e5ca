"""Canvases of several handwritten digits and coloured shapes: what the question model looks at.

A canvas has 3 × 3 cells of 32 pixels, and in some of them an object: a digit of scikit-learn's bundled set or a shape,
14 to 18 pixels large, in one of six colours. The ground is dark and soft; on every second canvas it is littered with
grey strokes. A canvas is a pure function of (split, seed, index), and the splits have no scan of a digit in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokensieve.demo.digits import Split, edge_table, source_digits

SIDE = 96
"""Rows and columns of a canvas, in pixels."""
PATCH = 8
"""Rows and columns of a patch of the model, in pixels."""
CELLS = 3
"""Rows and columns of cells."""
COLOURS = {
    "red": (228, 44, 40),
    "green": (52, 190, 60),
    "blue": (66, 104, 245),
    "yellow": (240, 214, 50),
    "pink": (240, 110, 220),
    "white": (238, 238, 238),
}
SHAPES = ("circle", "square", "triangle")
KINDS = (*map(str, range(10)), *SHAPES)
"""What an object may be, in the words of the questions."""

_CELL = SIDE // CELLS
_SPRITE = 20  # rows and columns that an object is drawn in
_NEAREST, _FARTHEST = 5, 7  # pixels from the edge of a cell to that of what an object is drawn in
_VARIANTS = 3  # of each scan: tilts, widths and strokes
_LEAST, _MOST = 4, 6  # objects of a canvas


@dataclass(frozen=True)
class Thing:
    """An object on a canvas.

    Attributes:
        kind: one of ``KINDS``.
        colour: one of ``COLOURS``.
        row, column: its cell, 0 to 2.
    """

    kind: str
    colour: str
    row: int
    column: int

    @property
    def digit(self) -> bool:
        return self.kind not in SHAPES


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture and what is on it.

    Attributes:
        pixels: (96, 96, 3) uint8, RGB.
        things: the objects, in reading order of their cells.
        ink: (number of objects, 12, 12) float32, the share of each patch that an object covers.
    """

    pixels: NDArray[np.uint8]
    things: tuple[Thing, ...]
    ink: NDArray[np.float32]

    @property
    def picture(self) -> Image.Image:
        """In RGB."""
        return Image.fromarray(self.pixels)

    def at(self, row: int, column: int) -> Thing | None:
        """What is in a cell, None where nothing is or there is no such cell."""
        return next((thing for thing in self.things if (thing.row, thing.column) == (row, column)), None)


def canvas(split: Split, seed: int, index: int) -> Canvas:
    """One canvas.

    Args:
        split: "train" or "val"; the scans of their digits differ.
        seed: other seeds give other canvases of the same scans.
        index: of the canvas.
    """
    rng = np.random.default_rng((seed, index, int(split == "val"), 2))
    things = _things(rng)
    pixels = _ground(rng)
    ink = np.zeros((len(things), SIDE // PATCH, SIDE // PATCH), dtype=np.float32)
    for thing, share in zip(things, ink, strict=True):
        y, x = (int(cell * _CELL + rng.integers(_NEAREST, _FARTHEST + 1)) for cell in (thing.row, thing.column))
        where = np.s_[y : y + _SPRITE, x : x + _SPRITE]
        alpha = np.zeros((SIDE, SIDE), dtype=np.float32)
        alpha[where] = _sprite(rng, split, thing.kind)
        colour = np.array(COLOURS[thing.colour]) * rng.uniform(0.85, 1.05) + rng.uniform(-10, 10, 3)
        pixels[where] += alpha[where][..., None] * (colour.astype(np.float32) - pixels[where])
        share[:] = alpha.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean(axis=(1, 3))
    y, x = (int(corner) for corner in rng.integers(SIDE, size=2))
    pixels += _grain()[y : y + SIDE, x : x + SIDE]
    return Canvas(np.clip(pixels, 0, 255).astype(np.uint8), tuple(things), ink)


def _things(rng: Generator) -> list[Thing]:
    """Objects in random cells; some have the kind or the colour of one before."""
    count = int(rng.integers(_LEAST, _MOST + 1))
    cells = sorted(int(cell) for cell in rng.permutation(CELLS * CELLS)[:count])
    kinds: list[str] = []
    for _ in range(count):
        fresh = str(rng.integers(10)) if rng.random() < 0.75 else SHAPES[rng.integers(len(SHAPES))]
        kinds.append(kinds[rng.integers(len(kinds))] if kinds and rng.random() < 0.3 else fresh)
    unused = list(rng.permutation(list(COLOURS)))
    colours: list[str] = []
    for _ in range(count):
        again = colours and rng.random() < 0.2
        colours.append(colours[rng.integers(len(colours))] if again else str(unused.pop()))
    order = rng.permutation(count)
    return [Thing(kinds[place], colours[place], *divmod(cell, CELLS)) for cell, place in zip(cells, order, strict=True)]


def _ground(rng: Generator) -> NDArray[np.float32]:
    """A soft dark ground, littered on every second canvas; (96, 96, 3)."""
    coarse = rng.uniform(20, 75) + rng.normal(0, 9, (5, 5, 1)) + rng.normal(0, 5, (5, 5, 3))
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    ground = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        draw = ImageDraw.Draw(ground)
        for _ in range(rng.integers(8, 16)):
            x, y, angle, reach = (*rng.uniform(0, SIDE, 2), rng.uniform(0, math.pi), rng.uniform(2, 5))
            dx, dy = reach * math.cos(angle), reach * math.sin(angle)
            level = int(rng.uniform(70, 125))
            draw.line((x - dx, y - dy, x + dx, y + dy), (level, level, level), int(rng.integers(1, 3)))
    return np.array(ground).astype(np.float32)


def _sprite(rng: Generator, split: Split, kind: str) -> NDArray[np.float32]:
    """The opacity of an object, (20, 20) in [0, 1]."""
    drawn = _drawn(split)[kind]
    return drawn[int(rng.integers(len(drawn)))]


@lru_cache(maxsize=2)
def _drawn(split: Split) -> dict[str, list[NDArray[np.float32]]]:
    """Every scan and shape in its variants, by kind."""
    rng = np.random.default_rng((0, int(split == "val")))
    bitmaps, labels = _legible(*source_digits(split))
    drawn: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in KINDS}
    for bitmap, label in zip(bitmaps, labels, strict=True):
        for _ in range(_VARIANTS):
            drawn[str(label)].append(_enlarged(rng, bitmap))
    for shape in SHAPES:
        drawn[shape] = [_shape(rng, shape) for _ in range(100)]
    return drawn


def _legible(bitmaps: Sequence[Image.Image], labels: NDArray[np.int64]) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """The scans that are more like the mean of their own digit than that of any other, about nine of ten."""
    pixels = np.stack([np.asarray(bitmap, dtype=np.float32).ravel() for bitmap in bitmaps])
    means = np.stack([pixels[labels == digit].mean(axis=0) for digit in range(10)])
    nearest = (np.square(means).sum(axis=1) - 2 * pixels @ means.T).argmin(axis=1)
    places = np.flatnonzero(nearest == labels)
    return [bitmaps[int(place)] for place in places], labels[places]


def _enlarged(rng: Generator, bitmap: Image.Image) -> NDArray[np.float32]:
    """A scan with its margins, tilted a little, 17 pixels tall; (20, 20) in [0, 1]."""
    scale = bitmap.width * 8 / 12 / rng.uniform(16.5, 17.5)  # the scan fills 8 of 12 parts of the bitmap
    angle, shear, wide = rng.normal(0, 0.03), rng.normal(0, 0.03), rng.uniform(0.95, 1.05)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = turn @ np.array([[scale * wide, scale * shear], [0, scale]])
    offset = bitmap.width / 2 - back @ np.array([_SPRITE / 2, _SPRITE / 2])
    size, affine = (_SPRITE, _SPRITE), (*back[0], offset[0], *back[1], offset[1])
    drawn = bitmap.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    edge = rng.uniform(0.36, 0.46)
    sharp: NDArray[np.float32] = np.array(drawn.point(edge_table(edge - 0.14, edge + 0.14)), dtype=np.float32)
    sharp /= 255
    return sharp


def _shape(rng: Generator, shape: str) -> NDArray[np.float32]:
    """A filled shape, 14 to 18 pixels large, with soft edges; (20, 20) in [0, 1]."""
    fine = 4
    large = Image.new("L", (_SPRITE * fine, _SPRITE * fine))
    draw, middle, half = ImageDraw.Draw(large), _SPRITE * fine / 2, rng.uniform(7, 9) * fine
    low, high = middle - half, middle + half
    if shape == "circle":
        draw.ellipse((low, low, high, high), 255)
    elif shape == "square":
        draw.rectangle((low, low, high, high), 255)
    else:
        draw.polygon([(middle, low), (high, high), (low, high)], 255)
    opacity: NDArray[np.float32] = np.array(large.reduce(fine), dtype=np.float32)
    opacity /= 255
    return opacity


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.float32]:
    """Noise that crops are taken from, (192, 192, 3)."""
    return np.random.default_rng(0).normal(0, 4, (2 * SIDE, 2 * SIDE, 3)).astype(np.float32)
