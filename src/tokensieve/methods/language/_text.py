"""How much the features of images have to do with the text around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.methods.language._prefix import PrefixView
from tokensieve.ops.rows import at_least_float32, unit_rows


@dataclass(frozen=True)
class Compared:
    """Images and the text around them in one space: that of the text encoder, or where none was given that of the
    language model, whose input embeddings are words and texts in one.

    Attributes:
        unit: (B, N, C) features or patches, of length one.
        texts: (B) of (P, C): the whole text, in one piece or several.
        words: (B) of (T, C): its single tokens.
    """

    unit: Tensor
    texts: Sequence[Tensor]
    words: Sequence[Tensor]


def compared(view: PrefixView) -> Compared:
    """What a method compares that reads the text."""
    if view.encoded is None:
        return Compared(unit_rows(view.features), view.text, view.text)
    return Compared(unit_rows(view.encoded.patches), view.encoded.texts, view.encoded.words)


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
