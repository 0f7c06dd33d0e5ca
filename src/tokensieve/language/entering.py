"""What of the pictures goes into the tower, and where among their placeholders the features stand that come out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Grid
from tokensieve.language.images import Features
from tokensieve.language.picture_hosts import pictures_of
from tokensieve.language.pictures import Pictures
from tokensieve.methods.language._input import InputMethod, PruningMethod, ResizingMethod


@dataclass(frozen=True)
class Entered:
    """Pictures of which less goes in.

    Attributes:
        given: what ``get_image_features`` is called with.
        places: of each picture, (K,) int64, ascending: at which of its placeholders the features stand that come out.
        placeholders: N of each picture.
        grids: the axes along which its K features lie, None where they lie along none.
    """

    given: dict[str, Any]
    places: tuple[Tensor, ...]
    placeholders: tuple[int, ...]
    grids: tuple[Grid | None, ...]

    def noted(self, outputs: Any, features: Features, name: str) -> Features:
        """What is known of the ``features`` that came out as ``outputs``, for the method called ``name``. The outputs
        get a row of features for every placeholder, in place: zero where none came out. A decoder never sees those, but
        models count them.

        Raises:
            RefusedError: they are not as many as the pictures that went in should give.
        """
        if not hasattr(outputs, "pooler_output"):
            raise RefusedError(
                f"{name} says which features are left on the outputs of get_image_features, and a tuple was asked for: "
                "leave return_dict out"
            )
        expected = tuple(map(len, self.places))
        if features.lengths != expected:
            raise RefusedError(
                f"{name}: the tower gave {list(features.lengths)} features for pictures that went in with room for "
                f"{list(expected)}: their number does not follow the size of the picture here, so choose a method that "
                "acts in front of the decoder, divprune for one"
            )
        outputs.pooler_output = self._spread(outputs.pooler_output)
        levels = getattr(outputs, "deepstack_features", None)
        if levels is not None:
            outputs.deepstack_features = [self._spread(level) for level in levels]
        return replace(features, grids=self.grids, places=self.places, placeholders=self.placeholders)

    def _spread(self, features: Any) -> Any:
        """Features (Σ K, C), or (B, K, C), or a list of those of one or several pictures, with N in place of K."""
        parts = [features] if isinstance(features, Tensor) and features.dim() == 2 else list(features)
        few = torch.cat(parts)
        starts = torch.tensor([0, *self.placeholders[:-1]]).cumsum(0).tolist()
        index = torch.cat([places + start for places, start in zip(self.places, starts, strict=True)]).to(few.device)
        whole = few.new_zeros(sum(self.placeholders), few.shape[1]).index_copy(0, index, few)
        if isinstance(features, Tensor):
            return whole if features.dim() == 2 else whole.view(len(features), -1, few.shape[1])
        return type(features)(whole.split(self._sizes([len(part) for part in parts])))

    def _sizes(self, lengths: Sequence[int]) -> list[int]:
        """Placeholders of parts with so many features, each of which are those of whole pictures."""
        sizes, pictures = [], iter(zip(self.places, self.placeholders, strict=True))
        for length in lengths:
            size = 0
            while length > 0:
                places, number = next(pictures)
                length, size = length - len(places), size + number
            sizes.append(size)
        return sizes


@dataclass(frozen=True)
class Entrance:
    """An input method in a model.

    Attributes:
        method: decides.
        pictures: how the model has pictures.
    """

    method: InputMethod
    pictures: Pictures

    @staticmethod
    def of(method: InputMethod, core: Any) -> Entrance:
        """Of a method for the model whose core this is.

        Raises:
            RefusedError: it cannot see less of a picture; says why.
        """
        return Entrance(method, pictures_of(core, method.name, prunes=isinstance(method, PruningMethod)))

    def enter(self, modality: str, given: Mapping[str, Any]) -> Entered | None:
        """What goes in, in place of what ``get_image_features`` or ``get_video_features`` is ``given``; None where all
        of it does.

        Raises:
            RefusedError: what is given does not say how pictures lie in it.
        """
        grids = self.pictures.grids(modality, given)
        if isinstance(self.method, PruningMethod):
            keep = [
                torch.stack([self.method.stays(frame) for frame in picture])
                for picture in self.pictures.pixels_of_features(modality, given)
            ]
            if all(bool(stays.all()) for stays in keep):
                return None
            places = tuple(stays.flatten().nonzero().squeeze(1) for stays in keep)
            return self._entered(self.pictures.pruned(modality, given, keep), places, grids, [None] * len(grids))
        assert isinstance(self.method, ResizingMethod)
        smaller = [self.method.size(grid, self.pictures.square) for grid in grids]
        if smaller == grids:
            return None
        places = tuple(nearest(grid, size) for grid, size in zip(grids, smaller, strict=True))
        return self._entered(
            self.pictures.resized(modality, given, smaller, self.method.resized), places, grids, smaller
        )

    def _entered(
        self, given: dict[str, Any], places: tuple[Tensor, ...], grids: Sequence[Grid], smaller: Sequence[Grid | None]
    ) -> Entered:
        return Entered(given, places, tuple(map(math.prod, grids)), tuple(smaller))


def nearest(grid: Grid, size: Grid) -> Tensor:
    """(prod size,) int64, ascending: the places of a ``grid`` that lie nearest to those of a coarser one; of two the
    later."""
    index = torch.zeros((), dtype=torch.int64)
    for long, short in zip(grid, size, strict=True):
        places = (2 * torch.arange(short) + 1) * long // (2 * short)
        index = index.unsqueeze(-1) * long + places
    return index.flatten()
