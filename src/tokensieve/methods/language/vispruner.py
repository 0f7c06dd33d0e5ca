"""VisPruner (arXiv 2412.01818): the tokens that the tower attends to, and of the others no near duplicates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.ops.rows import split_top, unit_rows


@dataclass(frozen=True, kw_only=True)
class VisPruner(PrefixMethod):
    """Keep the tokens of highest class attention, and of the others those without a near duplicate.

    A share of the budget goes to the highest class attention in the last block of the tower (attention received where
    it has no class token). From the others near duplicates are removed in rounds until the budget is met: those that
    are left are split into every other one and the rest, and of the first half those leave whose largest cosine with
    the second is highest. With ``important=1`` it is FasterVLM. Ties go to the lower index. Our choice: ``removed``.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        important: share of the kept tokens that are chosen by attention, rounded up.
        removed: near duplicates that leave in a round; more is faster and coarser.
    """

    important: float = 0.5
    removed: int = 8

    paper = (
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        "Zhang et al.",
        2024,
        "2412.01818",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.important <= 1, self, "important", "a share in [0, 1]")
        require(self.removed >= 1, self, "removed", "1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 1,)

    def choose(self, view: PrefixView) -> Kept:
        important = math.ceil(round(self.important * view.count, 6))
        first, rest = split_top(view.tower.importance, important)
        if important < view.count:
            rest = thinned(unit_rows(view.features), rest, view.count - important, self.removed)
            first = torch.cat([first, rest], dim=1)
        return Kept(in_order(first))


def thinned(unit: Tensor, places: Tensor, count: int, removed: int) -> Tensor:
    """What is left of ``places`` when near duplicates have gone, ``removed`` in a round (Zhang et al., 2024).

    Args:
        unit: (B, N, C) features of length one.
        places: (B, R) int64, ascending, R ≥ count.
        count: K, 1 or more.
        removed: at most so many leave in a round.

    Returns:
        (B, K) int64, ascending.
    """
    alike = unit @ unit.transpose(1, 2)
    images = torch.arange(len(unit), device=unit.device)[:, None, None]
    while places.shape[1] > count:
        first, second = places[:, ::2], places[:, 1::2]
        nearest = alike[images, first.unsqueeze(2), second.unsqueeze(1)].amax(dim=2)
        leaving = min(removed, places.shape[1] - count, first.shape[1])
        _, staying = split_top(nearest, leaving)
        places = in_order(torch.cat([first.gather(1, staying), second], dim=1))
    return places
