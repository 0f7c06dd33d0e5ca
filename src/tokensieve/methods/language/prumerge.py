"""LLaVA-PruMerge (arXiv 2403.15388): tokens that stand out by class attention, merged with those of similar keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView
from tokensieve.ops.rows import at_least_float32, rank_descending, unit_rows

WHISKER = 1.5  # interquartile ranges above the upper quartile from which on a score is an outlier


@dataclass(frozen=True, kw_only=True)
class PruMerge(PrefixMethod):
    """Keep as many tokens as stand out by class attention in this image, and merge others into them.

    Kept are the outliers of class attention in the last-but-one block of the tower (attention received where it has no
    class token): those above the upper quartile by more than 1.5 interquartile ranges. Each kept token becomes the
    mean, weighted by that attention, of itself and of the tokens that are not kept whose keys are most like its own by
    cosine; one token may go to several. So the count follows the image, up to the cap; where nothing stands out the one
    of highest attention is kept. PruMerge+ (``plus=true``) fills the cap with evenly spaced ones of the others, which
    merge alike. Ties go to the lower index.

    Options:
        keep: the most it may keep, as a share of an image's tokens in (0, 1]; 1 leaves the count to the image.
        tokens: the same as a number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        plus: add evenly spaced tokens, ⌊(k + ½) · R / E⌋ of the R others for k < E, until the cap is met.
        merged: how many tokens are merged into each kept one; 0 for pruning alone.
    """

    plus: bool = False
    merged: int = 32

    ragged: ClassVar[bool] = True
    paper = (
        "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
        "Shang et al.",
        2024,
        "2403.15388",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.merged >= 0, self, "merged", "0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 2,)

    def choose(self, view: PrefixView) -> Kept:
        seen = view.tower
        attention = at_least_float32(seen.importance[0])
        stays = _outliers(attention, view.count)
        if self.plus:
            others, more = (~stays).nonzero().squeeze(1), view.count - int(stays.sum())
            step = torch.arange(more, device=stays.device)
            stays[others[(2 * step + 1) * len(others) // max(1, 2 * more)]] = True
        kept, rest = stays.nonzero().squeeze(1), (~stays).nonzero().squeeze(1)
        if not self.merged or not len(rest):
            return Kept(kept.unsqueeze(0))
        keys = unit_rows(seen.keys)[0]
        values = _merged(at_least_float32(view.features[0]), attention, keys, kept, rest, self.merged)
        return Kept(kept.unsqueeze(0), values.to(view.features.dtype).unsqueeze(0))


def _outliers(attention: Tensor, most: int) -> Tensor:
    """(N) bool: the outliers of (N), at least one and at most so many."""
    lower, upper = attention.quantile(0.25), attention.quantile(0.75)
    number = int((attention > upper + WHISKER * (upper - lower)).sum())
    highest = rank_descending(attention.unsqueeze(0))[0, : min(most, max(1, number))]
    return torch.zeros_like(attention, dtype=torch.bool).index_fill(0, highest, True)


def _merged(features: Tensor, attention: Tensor, keys: Tensor, kept: Tensor, rest: Tensor, count: int) -> Tensor:
    """(K, C) the mean of each kept token and the ``count`` of the rest that are most like it, weighted by attention."""
    nearest = rank_descending(keys[kept] @ keys[rest].transpose(0, 1))[:, :count]
    others = features.new_zeros(len(kept), len(rest)).scatter(1, nearest, attention[rest][nearest].to(features.dtype))
    own = attention[kept].to(features.dtype).unsqueeze(1)
    total = own + others.sum(dim=1, keepdim=True)
    mean = (own * features[kept] + others @ features[rest]) / torch.where(total > 0, total, 1.0)
    # Nothing to weigh by where a method in the tower removed them all.
    return torch.where(total > 0, mean, features[kept])
