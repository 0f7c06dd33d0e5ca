"""From a state map and an image to a picture of the patches, and the small chart of tokens in each block."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tokensieve.show.maps import SiteMap, State

RGB = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)

PANEL = 420
SKIP: RGB = (64, 156, 255)
SKIP_TINT: RGB = (16, 38, 72)
PRUNED: RGB = (24, 26, 32)
CROSS: RGB = (168, 172, 182)
BAR: RGB = (64, 156, 255)
BAR_DENSE = (120, 135, 160, 56)  # a veil, on white paper and on dark
GOLDEN = 0.61803398875


def panel_size(grid: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a panel: whole pixels for each patch, the longer side near ``PANEL``."""
    cell = max(4, round(PANEL / max(grid)))
    return grid[1] * cell, grid[0] * cell


def fit(picture: Pixels, grid: tuple[int, int]) -> Pixels:
    """The picture (height, width, 3) at the size of a panel."""
    resized = Image.fromarray(picture).resize(panel_size(grid), Image.Resampling.LANCZOS)
    fitted: Pixels = np.asarray(resized, dtype=np.uint8)
    return fitted


def site_panel(picture: Pixels, site: SiteMap) -> Pixels:
    """The image with its patches drawn by state.

    Attending patches are unchanged; patches of one token are filled with their mean colour and outlined in the
    colour of their group; skipped ones are dimmed and hatched; pruned ones are dark with a cross.

    Args:
        picture: (height, width, 3) uint8, what the model saw.
        site: a map with ``state`` and ``group``.
    """
    if site.state is None or site.group is None:
        raise ValueError(f"block {site.block}: a soft assignment has no map of patches to draw")
    fitted = fit(picture, site.state.shape).astype(np.float32)
    cell = fitted.shape[0] // site.state.shape[0]
    state = _enlarge(site.state, cell)
    shared = np.bincount(site.group.ravel())[site.group] > 1
    canvas = np.where(_enlarge(shared, cell)[..., None], group_means(fitted, site.group), fitted)
    canvas = np.where((state == State.SKIPPED)[..., None], _skipped(canvas, cell), canvas)
    canvas = np.where((state == State.PRUNED)[..., None], _pruned(fitted, cell), canvas)
    merged = shared | (site.state == State.MERGED)  # with others whose places are not known
    _outline(canvas, site.group, merged & (site.state != State.PRUNED), cell)
    drawn: Pixels = canvas.round().clip(0, 255).astype(np.uint8)
    return drawn


def group_means(picture: NDArray[np.float32], group: NDArray[np.int64]) -> NDArray[np.float32]:
    """Every pixel replaced by the mean colour of all patches in its group; shape of ``picture``."""
    rows, columns = group.shape
    cell = picture.shape[0] // rows
    patches = picture.reshape(rows, cell, columns, cell, 3).mean(axis=(1, 3)).reshape(-1, 3)
    flat = group.ravel()
    counts = np.bincount(flat)
    sums = np.stack([np.bincount(flat, weights=patches[:, channel]) for channel in range(3)], axis=1)
    means: NDArray[np.float32] = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return _enlarge(means[group], cell)


def group_colour(number: int) -> RGB:
    """A bright colour for the ``number``-th group; neighbouring numbers are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((number * GOLDEN) % 1.0, 0.55, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _enlarge(cells: NDArray[Scalar], cell: int) -> NDArray[Scalar]:
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)


def _skipped(canvas: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    grey = canvas.mean(axis=2, keepdims=True)
    dimmed: NDArray[np.float32] = 0.30 * grey + 0.10 * canvas + np.array(SKIP_TINT, dtype=np.float32)
    rows, columns = np.indices(canvas.shape[:2])
    period = max(4, cell // 3)
    line = ((rows + columns) % period < max(1, period // 5))[..., None]
    hatched: NDArray[np.float32] = np.where(line, 0.25 * dimmed + 0.75 * np.array(SKIP, dtype=np.float32), dimmed)
    return hatched


def _pruned(canvas: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    dark = 0.12 * canvas + 0.88 * np.array(PRUNED, dtype=np.float32)
    down, across = (np.indices(canvas.shape[:2]) % cell) - (cell - 1) / 2
    arms = np.minimum(abs(down - across), abs(down + across)) <= max(0.5, cell / 24)
    cross = (arms & (np.maximum(abs(down), abs(across)) <= cell / 4))[..., None]
    return np.where(cross, np.array(CROSS, dtype=np.float32), dark)


def _outline(canvas: NDArray[np.float32], group: NDArray[np.int64], shared: NDArray[np.bool_], cell: int) -> None:
    """Draw the border of every shared group into ``canvas``, on its own side of the edge."""
    width = max(1, cell // 14)
    framed = np.pad(group, 1, constant_values=-1)
    for row, column in zip(*np.nonzero(shared), strict=True):
        own = group[row, column]
        colour = group_colour(int(own))
        patch = canvas[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        if framed[row, column + 1] != own:
            patch[:width] = colour
        if framed[row + 2, column + 1] != own:
            patch[-width:] = colour
        if framed[row + 1, column] != own:
            patch[:, :width] = colour
        if framed[row + 1, column + 2] != own:
            patch[:, -width:] = colour
        # Inner corners, where only the diagonal neighbour belongs to another group.
        for vertical, horizontal in ((0, 0), (0, 2), (2, 0), (2, 2)):
            if framed[row + vertical, column + horizontal] != own:
                down = slice(None, width) if vertical == 0 else slice(-width, None)
                across = slice(None, width) if horizontal == 0 else slice(-width, None)
                patch[down, across] = colour


def token_chart(tokens: Sequence[int], dense: int, size: tuple[int, int]) -> Image.Image:
    """Bars on nothing: tokens attended in each block, before a pale bar of what the dense model attends.

    Args:
        tokens: one count a block.
        dense: the count of the dense model.
        size: (width, height) in pixels.
    """
    width, height = size
    chart = Image.new("RGBA", size, (255, 255, 255, 0))
    pen = ImageDraw.Draw(chart)
    step = width / max(len(tokens), 1)
    gap = max(1.0, step * 0.18)
    for number, count in enumerate(tokens):
        left, right = number * step + gap / 2, (number + 1) * step - gap / 2
        pen.rectangle((left, 0, right, height), fill=BAR_DENSE)
        pen.rectangle((left, height * (1 - count / max(dense, 1)), right, height), fill=BAR)
    return chart
