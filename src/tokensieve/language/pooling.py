"""From the patches of a tower to the features that are made of them, for what the tower says of each patch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.families._locate import Located
from tokensieve.language.grids import SIZES
from tokensieve.methods.language._prefix import TowerSignals

Order = Callable[[Mapping[str, Any]], Tensor | None]


@dataclass(frozen=True)
class Pooling:
    """Which patches of the tower a feature is made of.

    Attributes:
        merged: of a tower that packs images in one row: how many patches that lie together there become one feature;
            0 of a tower that holds pictures apart.
        order: of such a tower: which merged group of the row each feature is, by the arguments of
            ``get_image_features``; None for the order of the row.
        squares: of a tower that holds pictures apart: whether squares of patches are pooled or shuffled into one
            feature.
    """

    merged: int = 0
    order: Order | None = None
    squares: bool = False

    @staticmethod
    def of(core: nn.Module, located: Located) -> Pooling | None:
        """As the parts of a host say it; None where a tower that packs images merges patches in no known way."""
        if located.family.packed:
            owner: Any = located.owner
            side = getattr(owner, "spatial_merge_size", None)
            if not isinstance(side, int) or not isinstance(getattr(owner, "merger", None), nn.Module):
                return None
            return Pooling(merged=side**2, order=_order_of(owner))
        parts: list[Any] = list(core.modules())
        return Pooling(squares=any(hasattr(part, "pixel_shuffle") or _pools(part) for part in parts))

    def of_features(
        self, heard: Mapping[int, TowerSignals], lengths: Sequence[int], given: Mapping[str, Any]
    ) -> dict[int, TowerSignals]:
        """What blocks say of patches as what they say of features: the mean over those that a feature is made of.

        Args:
            heard: of blocks by number, with a row for each picture, or one row of all patches.
            lengths: features of each image.
            given: the arguments of ``get_image_features``.

        Returns:
            Each with one row, of the features of all images one behind the other; none where a feature is no such mean.
        """
        joined = {block: self._joined(seen, lengths, given) for block, seen in heard.items()}
        return {block: seen for block, seen in joined.items() if seen is not None}

    def _joined(self, seen: TowerSignals, lengths: Sequence[int], given: Mapping[str, Any]) -> TowerSignals | None:
        pictures, patches = seen.importance.shape
        number = sum(lengths)
        if self.merged:
            if pictures * patches != self.merged * number:
                return None
            found = _mean(seen, lambda values: values.reshape(1, number, self.merged, -1).mean(dim=2))
            order = None if self.order is None else self.order(given)
            if order is None:
                return found
            return _mean(found, lambda values: values[:, order.to(values.device)]) if len(order) == number else None
        if pictures != len(lengths) or len(set(lengths)) != 1:
            return None
        if patches == lengths[0]:
            return _mean(seen, lambda values: values.reshape(1, number, -1))
        before, behind = math.isqrt(patches), math.isqrt(lengths[0])
        whole = before**2 == patches and behind**2 == lengths[0] and before % behind == 0
        if not self.squares or not whole:
            return None
        side = before // behind
        shape = (pictures, behind, side, behind, side, -1)
        return _mean(seen, lambda values: values.reshape(shape).mean(dim=(2, 4)).reshape(1, number, -1))


def _mean(seen: TowerSignals, taken: Callable[[Tensor], Tensor]) -> TowerSignals:
    """``seen`` with its values (…, D) as ``taken`` gives them, (1, F, D)."""
    importance = taken(seen.importance.unsqueeze(-1)).squeeze(-1)
    return TowerSignals(importance, taken(seen.keys), seen.class_token)


def _pools(part: Any) -> bool:
    return isinstance(getattr(part, "avg_pool", None), nn.AvgPool2d)


def _order_of(owner: Any) -> Order | None:
    """How a tower that lays its row out by windows puts features back."""
    index: Any = getattr(sys.modules[type(owner).__module__], "get_vision_window_index", None)
    if index is None or not hasattr(owner, "window_size"):
        return None

    def order(given: Mapping[str, Any]) -> Tensor | None:
        places = given.get("window_index")
        if places is None:
            sizes = next(given[name] for name in SIZES if given.get(name) is not None)
            places, _ = index(sizes, owner.spatial_merge_size, owner.window_size, owner.patch_size)
        return torch.argsort(places)

    return order
