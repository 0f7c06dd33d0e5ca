"""Evo-ViT (arXiv 2108.01390)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, kept, per_site
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.methods.controls import Pruning
from tokensieve.ops.rows import rank_descending
from tokensieve.tokens.decision import Assignment, Until

SCORE = "evo-vit"  # what lies beside each token: the running mean of its class attention


@dataclass(frozen=True, kw_only=True)
class EvoViT(Pruning):
    """Update slowly what matters and fast what does not: one token stands in for the rest through a span of blocks.

    Before blocks 4 and 8 of 12 the patch tokens of the highest score are informative. The others become one
    representative, their mean weighted by score, which goes through the blocks with the informative ones. Before the
    next site, and behind the last block, they part again: each is what it was plus what the representative has changed
    by. So no token is ever lost, and the next site chooses among all. The score at the first site is the class
    attention of the block before it; through each span the informative tokens' becomes the mean of what it was and the
    class attention of the block, block by block, and the others keep theirs. The paper trains with it, from scratch or
    on. No number of it is claimed here.

    Its authors classify by the mean of the patches, which a model of timm does with ``global_pool="avg"``; their code
    for DeiT has no representative, and tokens that are not informative stay as they were (``representative=False``).
    Our choice: models without a class token score by attention received.

    Options:
        keep: share of the patch tokens that is informative in each span, or one share per span; ceil(keep · N).
        sites: 0-based blocks at which spans begin, 1 at least; a span ends before the next one. Default 4, 8 of 12,
            scaled to the depth.
        representative: whether one token stands in for those that are not informative.
    """

    keep: float | tuple[float, ...] = 0.5
    representative: bool = True

    name = "evo-vit"
    point = "before"
    undisturbed = True
    paper = ("Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", "Xu et al.", 2021, "2108.01390")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sites is None or 0 not in self.sites, self, "sites", "blocks behind another one, 1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (4, 8), depth, self.name)

    def returns_at(self, site: int, layout: Layout) -> Until:
        return (*self.blocks(layout.depth)[1:], layout.depth)[site]

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout)})

    def watches(self, depth: int) -> frozenset[int]:
        sites = self.blocks(depth)
        return frozenset(range(sites[0] - 1, sites[-1])) if sites else frozenset()

    def watch(self, view: View) -> None:
        attention, before = view.importance, view.extra(SCORE)
        if before is None or view.block < self.blocks(view.layout.depth)[0]:
            view.carry(SCORE, attention, "sum")
            return
        score = (before + attention) / 2
        if any(entry.start is not None for entry in view.tokens.back.parked):  # the representative is the last token
            score = torch.cat([score[:, :-1], before[:, -1:]], dim=1)
        view.carry(SCORE, score, "sum")

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        # One token alone would stand for itself.
        return min(kept(patches, per_site(self.keep, site)) + self.representative, patches)

    def assign(self, view: View) -> Assignment:
        score = view.extra(SCORE)
        assert score is not None  # of the block before
        order, until = rank_descending(score), self.returns_at(view.site, view.layout)
        if not self.representative:
            keep, dropped = order[:, : view.keep].sort(dim=1).values, order[:, view.keep :]
            return Assignment(keep=keep, dropped=dropped, until=until)
        informative = order[:, : view.keep - 1].sort(dim=1).values
        leader, moved = order[:, view.keep - 1 : view.keep], order[:, view.keep :]
        return Assignment(
            keep=torch.cat([informative, leader], dim=1),
            moved=moved,
            onto=torch.full_like(moved, view.keep - 1),
            weight=score,
            until=until,
            parts=True,
        )
