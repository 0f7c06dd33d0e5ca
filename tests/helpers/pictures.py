"""Pictures for input methods: smaller ones, and ones that repeat themselves, with which of their patches do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.languages import PIXELS, SIDE, Inputs, Language, Row, image_of

UNIT = SIDE // 4  # pixels along each side of a feature


def smaller(image: Tensor, rows: int, columns: int) -> Tensor:
    """(3, H, W) with room for so many rows and columns of features."""
    size = (rows * UNIT, columns * UNIT)
    return F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]


def smaller_pixels(language: Language, rows: tuple[Row, ...], size: tuple[int, int]) -> Inputs:
    """What the model is called with for the pictures of these rows, made smaller one by one."""
    return language.pixels([[smaller(image_of(row, number), *size) for number in range(row.images)] for row in rows])


def repeated(rows: tuple[Row, ...], language: Language) -> tuple[Inputs, list[Tensor]]:
    """The inputs of these rows with pictures that repeat themselves in parts, and which of their 16 patches do not."""
    images: list[list[Tensor]] = []
    stay: list[Tensor] = []
    for row in rows:
        images.append([])
        for number in range(row.images):
            image = image_of(row, number)
            image[:, UNIT:, 2 * UNIT : 3 * UNIT] = image[:, UNIT:, UNIT : 2 * UNIT]  # as at their left
            image[:, 2 * UNIT : 3 * UNIT, 3 * UNIT :] = image[:, UNIT : 2 * UNIT, 3 * UNIT :]  # as above
            image[:, 3 * UNIT :, :UNIT] = image[:, 2 * UNIT : 3 * UNIT, :UNIT] + 0.01
            if number:
                image[:, :UNIT, UNIT:] = image[:, :UNIT, :UNIT].repeat(1, 1, 3)
            images[-1].append(image)
            stay.append(predicted(image, 0.02))
    text = {name: value for name, value in language.inputs(*rows).items() if name not in PIXELS}
    return text | language.pixels(images), stay


def predicted(image: Tensor, tau: float) -> Tensor:
    """(16,) bool: which patches of (3, SIDE, SIDE) their neighbours do not predict, patch by patch."""
    patch = {(i, j): image[:, i * UNIT : (i + 1) * UNIT, j * UNIT : (j + 1) * UNIT] for i in range(4) for j in range(4)}

    def like(one: Tensor, other: Tensor) -> bool:
        return float((one - other).abs().max()) <= tau

    stays = []
    for (i, j), own in patch.items():
        left, above, corner = patch.get((i, j - 1)), patch.get((i - 1, j)), patch.get((i - 1, j - 1))
        if left is None or above is None:
            beside = above if left is None else left
            stays.append(beside is None or not like(own, beside))
        else:
            assert corner is not None
            of_above = like(corner, left) and not like(corner, above)
            stays.append(not like(own, above if of_above else left))
    return torch.tensor(stays)
