"""DivPrune (arXiv 2503.02175): the features that are farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.methods.language._greedy import cosines_between
from tokensieve.methods.language._loops import farthest_in_graph
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order


@dataclass(frozen=True, kw_only=True)
class DivPrune(PrefixMethod):
    """Keep the most diverse features: max–min diversity over cosine distances d = 1 − cos.

    The first is the one whose nearest other is farthest; then, again and again, the one that is farthest from all that
    are chosen. No attention, no text, no parameters. Ties go to the lower index.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
    """

    paper = (
        "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        "Alvar et al.",
        2025,
        "2503.02175",
    )

    def choose(self, view: PrefixView) -> Kept:
        select = farthest_in_graph if torch.compiler.is_exporting() else farthest
        return Kept(in_order(select(view.features, view.count)))


def farthest(features: Tensor, count: int) -> Tensor:
    """(B, count) int64: max–min diverse rows of (B, N, C), in the order of the choice (Alvar et al., 2025)."""
    distance = cosines_between(F.normalize(features.float(), dim=2)).neg_().add_(1)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    chosen = [distance.amin(dim=2).argmax(dim=1)]
    distance.diagonal(dim1=1, dim2=2).zero_()
    images = torch.arange(len(features), device=features.device)
    nearest = distance[images, chosen[0]]
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    for _ in range(count - 1):
        taken[images, chosen[-1]] = True
        chosen.append(nearest.masked_fill(taken, -torch.inf).argmax(dim=1))
        nearest = nearest.minimum(distance[images, chosen[-1]])
    return torch.stack(chosen, dim=1)
