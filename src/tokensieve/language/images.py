"""The features of each image in a batch of sequences: where they stand, and what the tower said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid
from tokensieve.methods.language._prefix import TowerSignals


@dataclass(frozen=True)
class Features:
    """What ``get_image_features`` gave of one modality.

    Attributes:
        lengths: features of each image. An image in tiles counts once where its features come together (LLaVA-NeXT,
            with the newlines between its rows, which are features like others), and a tile is an image of its own where
            they do not (InternVL, Idefics3).
        signals: of blocks of the tower, by number, with a row for each picture that went through it.
        grids: the axes along which the features of each image lie, None where they are not known; empty for none.
    """

    lengths: tuple[int, ...]
    signals: Mapping[int, TowerSignals] = field(default_factory=dict)
    grids: tuple[Grid | None, ...] = ()

    @staticmethod
    def of(outputs: Any, signals: Mapping[int, TowerSignals], by_row: bool = False) -> Features:
        """Of the output of ``get_image_features``; ``by_row`` where it gives all pictures of a sequence together, which
        have as many features each."""
        pooled: Any = outputs.pooler_output if hasattr(outputs, "pooler_output") else outputs
        lengths = tuple(len(image) for image in pooled)
        pictures = len(outputs.last_hidden_state) if by_row else 0
        if pictures and sum(lengths) % pictures == 0:
            lengths = (sum(lengths) // pictures,) * pictures
        return Features(lengths, signals)


@dataclass(frozen=True)
class Image:
    """One image in one sequence.

    Attributes:
        row: of the batch.
        places: (N,) int64, ascending: where its features stand.
        signals: of blocks of the tower, each with one row; empty where a feature is not a patch of one picture.
        grid: the axes along which its features lie, or None where they are not known.
    """

    row: int
    places: Tensor
    signals: Mapping[int, TowerSignals]
    grid: Grid | None = None


def images_in(visual: Tensor, features: Features) -> list[Image]:
    """The images of a batch, row by row.

    Args:
        visual: (B, L) bool: where features stand.
        features: of all images. Where ``generate`` repeats each row for beams or several answers, the images of a row
            follow each other once, and the rows repeat.

    Raises:
        RefusedError: the placeholders of a row are not those of whole images.
    """
    lengths, found, number, used = features.lengths, [], 0, 0
    per_row = visual.sum(dim=1).tolist()
    repeats = _repeats(per_row, lengths)
    for row, places in enumerate(visual):
        where, start = places.nonzero().squeeze(1), 0
        if repeats > 1 and row % repeats:
            number -= used
        used = 0
        while start < len(where):
            length = lengths[number] if number < len(lengths) else len(where) + 1
            if start + length > len(where):
                raise RefusedError(
                    f"the placeholders of a sequence, {len(where)}, do not belong to whole images of {list(lengths)} "
                    "features: give every image its placeholders in one sequence"
                )
            own = {block: _of_picture(seen, number, length, len(lengths)) for block, seen in features.signals.items()}
            known = {block: seen for block, seen in own.items() if seen is not None}
            grid = features.grids[number] if features.grids else None
            found.append(Image(row, where[start : start + length], known, grid))
            start, number, used = start + length, number + 1, used + 1
    return found


def _repeats(per_row: Sequence[int], lengths: Sequence[int]) -> int:
    total = sum(lengths)
    return sum(per_row) // total if total and sum(per_row) % total == 0 else 1


def _of_picture(seen: TowerSignals, number: int, length: int, images: int) -> TowerSignals | None:
    pictures, patches = seen.importance.shape
    if pictures != images or patches != length:
        return None
    one = slice(number, number + 1)
    return TowerSignals(seen.importance[one], seen.keys[one], seen.class_token)


def text_of(embeddings: Tensor, others: Tensor) -> list[Tensor]:
    """The embeddings (T, C) of the text in each row: those of (B, L, C) where (B, L) ``others`` says so."""
    return [row[text] for row, text in zip(embeddings, others, strict=True)]


def stacked(signals: Sequence[Mapping[int, TowerSignals]]) -> dict[int, TowerSignals]:
    """The signals of several images as those of a batch; only blocks that all of them have."""
    shared = set(signals[0]).intersection(*signals[1:]) if signals else set()
    return {
        block: TowerSignals(
            torch.cat([one[block].importance for one in signals]),
            torch.cat([one[block].keys for one in signals]),
            signals[0][block].class_token,
        )
        for block in sorted(shared)
    }
