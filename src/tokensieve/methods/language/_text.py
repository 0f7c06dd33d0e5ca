"""How much the features of images have to do with the text around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.rows import at_least_float32


def cosines(unit: Tensor, text: Sequence[Tensor]) -> list[Tensor]:
    """Cosine of every text embedding of an image with every feature of it.

    Args:
        unit: (B, N, C) features of length one.
        text: (B) the embeddings (T, C) of the text around each image.

    Returns:
        (B) of (T, N), in the dtype of ``unit``; T is 0 where there is no text.
    """
    return [_unit(words).to(unit.dtype) @ image.transpose(0, 1) for image, words in zip(unit, text, strict=True)]


def mean_cosine(unit: Tensor, text: Sequence[Tensor]) -> Tensor:
    """(B, N) mean over the text of its cosines with (B, N, C) features of length one; zeros where there is no text."""
    # The mean of cosines is the cosine with the mean of text embeddings of length one, up to a factor.
    mean = [_unit(words).sum(dim=0) / max(1, len(words)) for words in text]
    return (unit @ torch.stack(mean).to(unit.dtype).unsqueeze(2)).squeeze(2)


def min_max(values: Tensor) -> Tensor:
    """Rows of (B, N) brought to [0, 1]; all ones where a row has one value only."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return torch.where(high > low, (values - low) / (high - low), 1.0)


def _unit(words: Tensor) -> Tensor:
    return F.normalize(at_least_float32(words), dim=1)
