"""Controls of prefix methods: tokens at random, and an even grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order


@dataclass(frozen=True, kw_only=True)
class PrefixRandom(PrefixMethod):
    """Keep tokens at random: what any method has to beat. The same for every image with as many tokens.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        seed: of the random order.
    """

    seed: int = 0

    name = "prefix-random"

    def choose(self, view: PrefixView) -> Kept:
        images, features, _ = view.features.shape
        places = _order(features, self.seed)[: view.count].to(view.features.device)
        return Kept(in_order(places.expand(images, -1)))


@cache
def _order(features: int, seed: int) -> Tensor:
    return torch.randperm(features, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class PrefixGrid(PrefixMethod):
    """Keep tokens at even distances in their order, row by row: ⌊(k + ½) · N / K⌋ for k < K.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
    """

    name = "prefix-grid"

    def choose(self, view: PrefixView) -> Kept:
        images, features, _ = view.features.shape
        step = torch.arange(view.count, device=view.features.device)
        places = (2 * step + 1) * features // (2 * view.count)
        return Kept(places.expand(images, -1))
