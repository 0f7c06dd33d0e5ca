"""Sliding windows: a model of a fixed size on images of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover ``length``; the last ends with it."""
    return [*range(0, max(0, length - window), stride), max(0, length - window)]


def filling(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) no smaller than a window (height, width): smaller ones are padded by their last pixels."""
    missing = [max(0, wanted - side) for wanted, side in zip(window, images.shape[-2:], strict=True)]
    return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else images


def sliding(
    model: Callable[[Tensor], Any], window: tuple[int, int], stride: tuple[int, int] | None = None, batch_size: int = 16
) -> Callable[[Tensor], Tensor]:
    """``model`` on images of any size: windows side by side, their answers averaged where they overlap.

    Args:
        model: images (B, C, h, w) of the window's size to maps (B, K, h, w).
        window: (height, width) in pixels.
        stride: pixels between windows, not above the window; default two thirds of it.
        batch_size: windows at a time.

    Returns:
        (B, C, H, W) to (B, K, H, W). Smaller images are padded by their last pixels and cut back.

    Raises:
        TokensieveError: a stride below 1 or above the window, which would leave gaps.
    """
    height, width = window
    down, across = stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))
    if not (0 < down <= height and 0 < across <= width):
        raise TokensieveError(
            f"the stride must be 1 or more and no larger than the window of {height} × {width}, got {down} × {across}"
        )

    def run(images: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        padded = filling(images, window)
        tall, wide = padded.shape[-2:]
        corners = [(top, left) for top in starts(tall, height, down) for left in starts(wide, width, across)]
        pieces = torch.stack([padded[:, :, y : y + height, x : x + width] for y, x in corners])
        answers = torch.cat([model(batch).float() for batch in pieces.flatten(0, 1).split(batch_size)])
        answers = answers.unflatten(0, (len(corners), images.shape[0]))
        total = answers.new_zeros(*answers.shape[1:3], tall, wide)
        count = answers.new_zeros(tall, wide)
        for (top, left), part in zip(corners, answers, strict=True):
            total[:, :, top : top + height, left : left + width] += part
            count[top : top + height, left : left + width] += 1
        answer: Tensor = (total / count)[:, :, :rows, :columns]
        return answer

    return run
