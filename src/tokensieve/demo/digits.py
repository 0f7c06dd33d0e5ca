"""Handwritten digits in clutter, the data set of the demo model.

Every image shows one digit of scikit-learn's bundled set (8x8 scans), enlarged, tilted and coloured, on a
smooth textured background among strokes, blobs and cut-off pieces of other digits. An image is a pure
function of (split, seed, index), so neither the number of workers nor the order of access changes it.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

Split = Literal["train", "val"]

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

BACKGROUND = 10  # the label of patches without ink

_LUMA = np.array([0.299, 0.587, 0.114])
_LEVELS = np.arange(256) / 255.0
_MARGIN = 2  # blank source pixels around a digit: room for tilting and for smooth edges
_BITMAP = 48  # side of an enlarged source bitmap, margins included
_BITMAP_DIGIT = _BITMAP * 8 // (8 + 2 * _MARGIN)  # the part of that side which the 8x8 scan fills
_SUPERSAMPLE = 2  # clutter is drawn this much larger, since PIL's drawing has hard edges


class Scene(NamedTuple):
    """One generated example, before normalisation."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB in 0..255."""
    alpha: NDArray[np.float32]
    """(H, W), the digit's opacity in [0, 1]: 1 on its strokes, 0 on background and clutter."""
    label: int
    """The digit, 0..9."""


class ClutteredDigits(Dataset[tuple[Tensor, int]]):
    """`size` images of one digit each in clutter; the two splits have no source digit in common.

    Args:
        split: "train" (four fifths of the scans of each class) or "val" (the other fifth).
        size: number of images; the first n of a larger set are those of a set of size n.
        seed: non-negative; other seeds give other images of the same source digits.
        image_size: height and width in pixels, at least 16. Digits are 25 % to 57 % of it tall, which is 28
            to 64 of 112 pixels.
    """

    def __init__(self, split: Split, size: int, seed: int = 0, image_size: int = 112) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {split!r}")
        if size < 0 or seed < 0 or image_size < 16:
            raise ValueError(f"size, seed and image_size out of range: {size}, {seed}, {image_size}")
        self.split = split
        self.size = size
        self.seed = seed
        self.image_size = image_size
        self.bitmaps, self.labels = source_digits(split)
        grain = np.random.default_rng(0).normal(128.0, 5.0, (2 * image_size, 2 * image_size, 3))
        self._grain = Image.fromarray(grain.astype(np.uint8))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image as float32 (3, H, W) in [-1, 1] (mean = std = 0.5), and its label 0..9."""
        scene = self.scene(index)
        return normalise(scene.image), scene.label

    def image(self, index: int) -> Image.Image:
        """The un-normalised picture, RGB, H x W."""
        return Image.fromarray(self.scene(index).image)

    def scene(self, index: int, spread: float = 1.0) -> Scene:
        """Generate example `index`, 0 <= index < len(self).

        `spread` in [0, 1] narrows the range of places and sizes, down to a large digit in the centre at 0;
        a curriculum may start there. The data set itself always uses 1.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} out of range for {self.size} images")
        # The split is part of the key: the two splits shall have no layout in common either.
        rng = np.random.default_rng((self.seed, index, int(self.split == "val")))
        n = self.image_size
        source = int(rng.integers(len(self.labels)))

        dark = rng.random() < 0.5
        ground = rng.uniform(0.08, 0.34) if dark else rng.uniform(0.66, 0.92)
        ink = ground + (1.0 if dark else -1.0) * rng.uniform(0.42, 0.58)

        digit = self._warp_digit(rng, self.bitmaps[source], spread)
        weight = rng.uniform(0.38, 0.50)  # the level at which ink begins sets the stroke's thickness
        alpha = digit.point(edge_table(weight - 0.12, weight + 0.12))

        clean = self._background(rng, ground)
        cluttered = self._add_clutter(rng, clean, ground, ink)
        # Clutter may reach the digit but fades next to its strokes, or the digit's shape would be ambiguous.
        canvas = Image.composite(clean, cluttered, digit.point(_HALO_TABLE))
        canvas.paste(_colour(rng, ink, 0.35), None, alpha)
        x, y = (int(corner) for corner in rng.integers(n, size=2))
        grain = self._grain.crop((x, y, x + n, y + n))
        image = np.array(ImageChops.add(canvas, grain, 1.0, -128))
        return Scene(image, np.asarray(alpha, dtype=np.float32) / 255.0, int(self.labels[source]))

    def _background(self, rng: Generator, luma: float) -> Image.Image:
        """A smooth gradient with soft patches around `luma`; RGB, H x W."""
        grid = np.linspace(-1.0, 1.0, 6)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        ramp = (math.cos(angle) * grid[None, :] + math.sin(angle) * grid[:, None])[..., None]
        a, b = (np.asarray(_colour(rng, luma + shift, 0.22)) for shift in rng.uniform(-0.06, 0.06, 2))
        cells = (a + b) / 2.0 + ramp * (b - a) / 2.0
        cells += rng.normal(0.0, 9.0, (6, 6, 1)) + rng.normal(0.0, 5.0, (6, 6, 3))
        small = Image.fromarray(np.clip(cells, 0.0, 255.0).astype(np.uint8))
        return small.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)

    def _warp_digit(self, rng: Generator, bitmap: Image.Image, spread: float) -> Image.Image:
        """Place a bitmap at a random position, scale, tilt and shear; L, H x W."""
        n = self.image_size
        height = n * (0.57 - spread * rng.uniform(0.0, 0.32))
        width = height * rng.uniform(0.85, 1.15)
        centre = n / 2.0 + spread * (n - height) * rng.uniform(-0.5, 0.5, 2)
        angle, shear = rng.normal(0.0, 0.12), rng.normal(0.0, 0.12)
        cos, sin = math.cos(angle), math.sin(angle)
        forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])
        # PIL asks for the map from output to input pixels.
        inverse = np.linalg.inv(forward @ np.diag([width, height]) / _BITMAP_DIGIT)
        offset = _BITMAP / 2.0 - inverse @ centre
        coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
        return bitmap.transform((n, n), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)

    def _add_clutter(self, rng: Generator, clean: Image.Image, ground: float, ink: float) -> Image.Image:
        """The background with strokes, blobs and fragments of other digits on it; RGB, H x W."""
        n = self.image_size * _SUPERSAMPLE
        layer = clean.resize((n, n), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(layer, "RGBA")
        for kind in rng.choice(4, size=rng.integers(8, 15), p=(0.22, 0.22, 0.12, 0.44)):
            opacity = rng.uniform(0.45, 0.9)
            colour = _colour(rng, ground + (ink - ground) * rng.uniform(0.15, 0.8), 0.3)
            fill = (*colour, int(255.0 * opacity))
            x, y = rng.uniform(0.0, n, 2)
            thickness = int(n * rng.uniform(0.015, 0.045))
            if kind == 0:  # straight stroke
                angle, reach = rng.uniform(0.0, 2.0 * math.pi), n * rng.uniform(0.03, 0.12)
                dx, dy = reach * math.cos(angle), reach * math.sin(angle)
                draw.line((x - dx, y - dy, x + dx, y + dy), fill, thickness)
            elif kind == 1:  # bent stroke; short of a half turn, lest it read as 0 or 6
                radius, start = n * rng.uniform(0.05, 0.14), rng.uniform(0.0, 360.0)
                box = (x - radius, y - radius, x + radius, y + radius)
                draw.arc(box, start, start + rng.uniform(50.0, 150.0), fill, thickness)
            elif kind == 2:  # blob
                rx, ry = n * rng.uniform(0.01, 0.05, 2)
                draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill)
            else:
                piece = self._fragment(rng, int(n * rng.uniform(0.12, 0.22)), opacity)
                layer.paste(colour, (int(x) - piece.width // 2, int(y) - piece.height // 2), piece)
        return layer.reduce(_SUPERSAMPLE)

    def _fragment(self, rng: Generator, side: int, opacity: float) -> Image.Image:
        """A round cut-out of an arbitrary digit, two fifths of it across, as a mask; L, side x side."""
        bitmap = self.bitmaps[int(rng.integers(len(self.bitmaps)))]
        margin = (_BITMAP - _BITMAP_DIGIT) // 2 + 4
        x, y = (int(centre) for centre in rng.integers(margin, _BITMAP - margin, 2))
        radius = _BITMAP_DIGIT // 5
        box = (x - radius, y - radius, x + radius, y + radius)
        piece = bitmap.resize((side, side), Image.Resampling.BICUBIC, box)
        piece = piece.transpose(Image.Transpose(int(rng.integers(7)))).point(edge_table(0.35, 0.6, opacity))
        window = Image.new("L", (side, side))
        ImageDraw.Draw(window).ellipse((0, 0, side - 1, side - 1), 255)
        return ImageChops.multiply(piece, window)


class DigitPictures(Dataset[tuple[Image.Image, int]]):
    """The un-normalised pictures and labels of ``ClutteredDigits``, as a data set that has its own transform.

    Args:
        split: "train", 60000 images of seed 1, or "val", 2000 of seed 0.
    """

    def __init__(self, split: Split) -> None:
        self.digits = ClutteredDigits(split, 60000, 1) if split == "train" else ClutteredDigits(split, 2000, 0)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        scene = self.digits.scene(index)
        return Image.fromarray(scene.image), scene.label


class DigitLessons(Dataset[tuple[Image.Image, Tensor]]):
    """153600 training pictures that get harder, with a label for every patch: what a ViT learns digits from quickly.

    The digit starts large and in the centre; over the first half the range of places and sizes widens. Labels are
    (1 + N,) int64: the digit, then for each of the N patches the digit whose ink covers a tenth of it, or 10.
    """

    def __init__(self, patch: int = 8) -> None:
        self.digits = ClutteredDigits("train", 153600, 1)
        self.patch = patch

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        spread = min(max(index / len(self) - 0.04, 0.0) / 0.46, 1.0)
        scene = self.digits.scene(index, spread)
        grid = scene.alpha.shape[0] // self.patch
        ink = scene.alpha.reshape(grid, self.patch, grid, self.patch).mean(axis=(1, 3)).reshape(-1)
        labels = np.concatenate([[scene.label], np.where(ink > 0.1, scene.label, BACKGROUND)])
        return Image.fromarray(scene.image), torch.from_numpy(labels)


def open_split(split: str) -> DigitPictures | DigitLessons:
    """The data set ``digits`` by its split: "train", "lessons", or under any other name the validation images."""
    return DigitLessons() if split == "lessons" else DigitPictures("train" if split == "train" else "val")


def normalise(image: NDArray[np.uint8]) -> Tensor:
    """RGB (H, W, 3) in 0..255 to float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def source_digits(split: Split) -> tuple[Sequence[Image.Image], NDArray[np.int64]]:
    """The scans of one split, smoothly enlarged to `_BITMAP` pixels a side (mode L), and their labels."""
    # scikit-learn is an optional dependency, and the model, which imports this module, needs none of it.
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, dtype=np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held_out[np.flatnonzero(labels == digit)[4::5]] = True
    chosen = np.flatnonzero(held_out == (split == "val"))
    levels = np.asarray(scans[chosen] * (255.0 / 16.0), dtype=np.uint8).reshape(-1, 8, 8)
    padded = np.pad(levels, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
    size = (_BITMAP, _BITMAP)
    return [Image.fromarray(scan).resize(size, Image.Resampling.BICUBIC) for scan in padded], labels[chosen]


def _colour(rng: Generator, luma: float, chroma: float) -> tuple[int, int, int]:
    """A colour of random hue with brightness `luma` in [0, 1], before clipping; RGB in 0..255."""
    hue = np.cos(rng.uniform(0.0, 2.0 * math.pi) + np.array([0.0, 2.0, 4.0]) * (math.pi / 3.0))
    rgb = luma + chroma * rng.uniform(0.3, 1.0) * (hue - hue @ _LUMA)
    red, green, blue = (int(level) for level in np.clip(255.0 * rgb, 0.0, 255.0))
    return red, green, blue


def edge_table(low: float, high: float, scale: float = 1.0) -> list[int]:
    """Look-up table of a soft threshold: levels up to `low` give 0, from `high` on `scale`, in [0, 1]."""
    t = np.clip((_LEVELS - low) / (high - low), 0.0, 1.0)
    table: list[int] = (255.0 * scale * t * t * (3.0 - 2.0 * t)).astype(int).tolist()
    return table


_HALO_TABLE = edge_table(0.02, 0.25, 0.85)
