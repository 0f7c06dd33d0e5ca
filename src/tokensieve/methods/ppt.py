"""PPT (arXiv 2310.01812)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.attention.scores import value_weighted
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, removed
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.ops.matching import bipartite_matching
from tokensieve.ops.rows import split_top
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class PPT(Method):
    """Token Pruning and Pooling: prune where tokens differ in importance, merge where they are alike in it.

    In the middle of blocks 3, 6, 9 of 12 a patch token's score is its class attention times the length of its value
    vector, and the scores of an image sum to one. Where their variance reaches ``threshold`` the r lowest are dropped;
    in the other images r tokens merge into similar ones as in ToMe. Either way r leave, so images stay of one length.
    Needs no training: DeiT-S 79.5 top-1 at 2.94 GMACs, 79.8 at 2.9 fine-tuned (dense 79.8 at 4.6) [authors].

    Our choice: r is cut to half of the tokens present, in pruning too; the variance is the unbiased one. Models
    without a class token score by attention received. The threshold was published for DeiT-S and other models may want
    another.

    Options:
        r: tokens removed at each site (never more than half of those present).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        threshold: variance of the scores below which an image merges instead of pruning; 0 always prunes, inf merges.
        proportional: log-size attention in later blocks.
    """

    r: int = 50
    sites: tuple[int, ...] | None = None
    threshold: float = 7e-5
    proportional: bool = True

    knob = "r"
    paper = ("PPT: Token Pruning and Pooling for Efficient Vision Transformers", "Wu et al.", 2023, "2310.01812")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 0, self, "r", "a whole number of tokens, 0 or more")
        require(not math.isnan(self.threshold) and self.threshold >= 0, self, "threshold", "a variance, 0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (3, 6, 9), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys", "logits", importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - removed(patches, self.r)

    def fewest(self, patches: int) -> int:
        return patches - patches // 2

    def assign(self, view: View) -> Assignment:
        score = view.score(value_weighted(view.attended, view.layout.class_token))
        score = score / score.sum(dim=1, keepdim=True)
        keep, dropped = split_top(score, view.keep)
        first = view.layout.prefix % 2
        stay, moved, onto = bipartite_matching(view.keys, view.count - view.keep, first)
        merges = self._merges(score)
        return Assignment(
            keep=torch.where(merges, stay, keep),
            moved=torch.where(merges, moved, dropped),
            onto=onto.masked_fill(~merges, -1),
            dropped=dropped[:, :0],
        )

    def _merges(self, score: Tensor) -> Tensor:
        """(B, 1): whether an image merges."""
        return score.var(dim=1, keepdim=True) < self.threshold
