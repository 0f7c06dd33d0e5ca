"""The features of each image in a batch of sequences: where they stand, and what the tower said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        signals: of blocks of the tower, by number, each with one row: the features of all images one behind the other.
        grids: the axes along which the features of each image lie, None where they are not known; empty for none.
        patches: (F, D) the last patches of the tower as a text encoder projects them, of all images one behind the
            other; None without an encoder, and where a feature is not a patch of one picture.
        places: of each image, (N,) int64, ascending: at which of its placeholders the features stand, where an input
            method has left some out; empty for all.
        placeholders: of each image, where that is so.
    """

    lengths: tuple[int, ...]
    signals: Mapping[int, TowerSignals] = field(default_factory=dict)
    grids: tuple[Grid | None, ...] = ()
    patches: Tensor | None = None
    places: tuple[Tensor, ...] = ()
    placeholders: tuple[int, ...] = ()

    @staticmethod
    def of(outputs: Any, by_row: bool = False, project: Callable[[Tensor], Tensor] | None = None) -> Features:
        """Of the output of ``get_image_features``.

        Args:
            outputs: the features of each image, and the last states of the tower.
            by_row: whether it gives all pictures of a sequence together, which have as many features each.
            project: a text encoder's: those states to (B, N, D) patches.
        """
        pooled: Any = outputs.pooler_output if hasattr(outputs, "pooler_output") else outputs
        pooled = outputs.last_hidden_state if pooled is None else pooled  # of cores that project them later, or never
        if isinstance(pooled, Tensor) and (pooled.dim() == 2 or (len(pooled) > 1 and pooled.shape[1] == 1)):
            raise RefusedError(
                f"the features of all images come in one tensor of shape {tuple(pooled.shape)}, which does not say "
                "where an image ends: fewer of them cannot be chosen in this model"
            )
        lengths = tuple(len(image) for image in pooled)
        pictures = len(outputs.last_hidden_state) if by_row else 0
        if pictures and sum(lengths) % pictures == 0:
            lengths = (sum(lengths) // pictures,) * pictures
        patches = None if project is None else project(outputs.last_hidden_state)
        if patches is None or len(patches) != len(lengths) or set(lengths) != {patches.shape[1]}:
            return Features(lengths)
        return Features(lengths, patches=patches.flatten(0, 1))

    def part(self, number: int) -> tuple[dict[int, TowerSignals], Tensor | None]:
        """What the tower said of the features of one image, and its patches (N, D)."""
        start = sum(self.lengths[:number])
        own = slice(start, start + self.lengths[number])
        signals = {
            block: TowerSignals(seen.importance[:, own], seen.keys[:, own], seen.class_token)
            for block, seen in self.signals.items()
        }
        return signals, None if self.patches is None else self.patches[own]


@dataclass(frozen=True)
class Image:
    """One image in one sequence.

    Attributes:
        row: of the batch.
        places: (N,) int64, ascending: where its features stand.
        signals: of blocks of the tower, each with one row; empty where it says nothing of single features.
        grid: the axes along which its features lie, or None where they are not known.
        patches: (N, D) its patches as a text encoder projects them, or None.
    """

    row: int
    places: Tensor
    signals: Mapping[int, TowerSignals]
    grid: Grid | None = None
    patches: Tensor | None = None


def images_in(visual: Tensor, features: Features) -> list[Image]:
    """The images of a batch, row by row.

    Args:
        visual: (B, L) bool: where features stand.
        features: of all images. Where ``generate`` repeats each row for beams or several answers, the images of a row
            follow each other once, and the rows repeat.

    Raises:
        RefusedError: the placeholders of a row are not those of whole images.
    """
    lengths, found, number, used = features.placeholders or features.lengths, [], 0, 0
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
            signals, patches = features.part(number)
            grid = features.grids[number] if features.grids else None
            own = where[start : start + length]
            if features.places:
                own = own[features.places[number].to(own.device)]
            found.append(Image(row, own, signals, grid, patches))
            start, number, used = start + length, number + 1, used + 1
    return found


def standing(visual: Tensor, images: Sequence[Image]) -> Tensor:
    """(B, L) bool: where in a batch features of these images stand; the others of ``visual`` have none."""
    found = torch.zeros_like(visual)
    for image in images:
        found[image.row, image.places] = True
    return found


def _repeats(per_row: Sequence[int], lengths: Sequence[int]) -> int:
    total = sum(lengths)
    return sum(per_row) // total if total and sum(per_row) % total == 0 else 1


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
