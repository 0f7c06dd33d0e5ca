"""ImagePiece (arXiv 2412.16491), a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._counts import removed
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.methods.controls import Pruning
from tokensieve.ops.matching import greedy_pairs, similarity
from tokensieve.ops.rows import complement, named, rank_descending, take_rows
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class ImagePiece(Pruning):
    """Join inattentive tokens in pairs, look at them again next time, drop them if they still are.

    In the middle of blocks 3, 6, 9 of 12 the patch tokens of the lowest class attention are inattentive, twice as many
    as are to leave. Those among them that were joined before have had their chance and are dropped, the least attentive
    first; the others are joined in pairs, the most similar first, until the number that is to leave has left. Made for
    training from scratch behind a convolutional stem, whose tokens overlap: ``timm.create_model("imagepiece_small")``.

    A reconstruction from the idea of the paper; no number is claimed. Our choice: the sites; the fixed number that
    leaves each of them, so that an image keeps as many tokens as its neighbours; the cosine of the keys (mean over
    heads) as similarity; the more attentive one of a pair leads it, and pairs average weighted by size. Models without
    a class token score by attention received.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; round(keep · M), and
            never less than half.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        proportional: log-size attention in later blocks.
    """

    proportional: bool = True

    paper = (
        "ImagePiece: Content-aware Re-tokenization for Efficient Image Recognition",
        "Yoa et al.",
        2024,
        "2412.16491",
    )

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys", importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return max(super().remaining(patches, site, layout), self.fewest(patches))

    def fewest(self, patches: int) -> int:
        return patches - removed(patches, patches)

    def assign(self, view: View) -> Assignment:
        length, leaving, score = view.count, view.count - view.keep, view.importance
        seen_before = view.size > 1
        if view.alive is not None:
            seen_before = seen_before | ~view.alive  # padding leaves before any token
        # Tokens that may still join stand first, so that pairs made of what is left over are theirs as well.
        inattentive = rank_descending(score)[:, length - 2 * leaving :].sort(dim=1).values
        order = seen_before.gather(1, inattentive).int().sort(dim=1, stable=True).indices
        inattentive = inattentive.gather(1, order)
        spent, lowest = seen_before.gather(1, inattentive), score.gather(1, inattentive)
        dropped = spent.sum(dim=1, keepdim=True).clamp(max=leaving)

        keys = take_rows(view.keys, inattentive)
        closed = spent.unsqueeze(1) | spent.unsqueeze(2)
        first, second = greedy_pairs(similarity(keys, keys).masked_fill(closed, -torch.inf), leaving)
        swap = lowest.gather(1, first) < lowest.gather(1, second)
        leader, joining = torch.where(swap, second, first), torch.where(swap, first, second)
        going = lowest.masked_fill(~spent, torch.inf).sort(dim=1, stable=True).indices

        places = torch.arange(leaving, device=score.device)
        pairs = leaving - dropped
        joins = places < pairs
        leaves = torch.where(joins, joining, going.gather(1, (places - pairs).clamp(min=0)))
        moved = inattentive.gather(1, leaves)
        return Assignment(
            keep=complement(moved, length),
            moved=moved,
            onto=_place(inattentive.gather(1, leader), moved, length).masked_fill(~joins, -1),
            dropped=moved[:, :0],
        )


def _place(token: Tensor, moved: Tensor, length: int) -> Tensor:
    """The places (B, R) of ``token`` among those of ``length`` tokens that ``moved`` (B, R) does not name."""
    return token - named(moved, length).cumsum(dim=1).gather(1, token)
