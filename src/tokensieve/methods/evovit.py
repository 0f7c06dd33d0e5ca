"""Evo-ViT (arXiv 2108.01390)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._counts import checked_sites, kept, per_site
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.methods.controls import Pruning
from tokensieve.ops.rows import rank_descending
from tokensieve.tokens.decision import Assignment, Until


@dataclass(frozen=True, kw_only=True)
class EvoViT(Pruning):
    """Update slowly what matters and fast what does not: one token stands in for the rest through a span of blocks.

    In the middle of blocks 4 and 8 of 12 the patch tokens of the highest class attention are informative. The others
    become one representative, their mean weighted by class attention, which goes through the blocks with the
    informative ones. Before the next site, and behind the last block, they part again: each is what it was plus what
    the representative has changed by. So no token is ever lost, and the next site chooses among all. The paper trains
    with it, from scratch or on. No number of it is claimed here.

    Our choice: tokens are judged by the class attention of the block at which a span begins, whose attention runs on
    all of them; the paper keeps a running mean of it over the blocks before. Models without a class token score by
    attention received.

    Options:
        keep: share of the patch tokens that is informative in each span, or one share per span; ceil(keep · N).
        sites: 0-based blocks at which spans begin; a span ends before the next one. Default 4, 8 of 12, scaled to the
            depth.
    """

    keep: float | tuple[float, ...] = 0.5

    name = "evo-vit"
    undisturbed = True
    paper = ("Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", "Xu et al.", 2021, "2108.01390")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (4, 8), depth, self.name)

    def returns_at(self, site: int, layout: Layout) -> Until:
        return (*self.blocks(layout.depth)[1:], layout.depth)[site]

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        # One token alone would stand for itself.
        return min(kept(patches, per_site(self.keep, site)) + 1, patches)

    def assign(self, view: View) -> Assignment:
        score = view.importance
        order = rank_descending(score)
        informative = order[:, : view.keep - 1].sort(dim=1).values
        leader, moved = order[:, view.keep - 1 : view.keep], order[:, view.keep :]
        return Assignment(
            keep=torch.cat([informative, leader], dim=1),
            moved=moved,
            onto=torch.full_like(moved, view.keep - 1),
            weight=score,
            until=self.returns_at(view.site, view.layout),
            parts=True,
        )
