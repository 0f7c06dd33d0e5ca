"""K-medoids (arXiv 2110.03860)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, share_of_all
from tokensieve.methods._medoids import medoids
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.methods.controls import PUBLISHED_SITES, Pruning
from tokensieve.ops.density import squared_distances
from tokensieve.ops.rows import named
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class KMedoids(Pruning):
    """Let the medoids of the tokens stand for all of them: clustering that returns tokens which exist.

    Before blocks 3, 6, 9 of 12. The int(N · keep^i) tokens that received the most attention w in the block before are
    the first medoids. Three times every token joins its nearest medoid, and the member that minimises Σ_j w_j d_ij over
    its cluster becomes the medoid. The medoids go on unchanged; the others of a cluster are given its medoid's value
    when all tokens are given back. Needs no training; the paper fine-tunes. No number of it is claimed here.

    Our choice: d is the Euclidean distance of the tokens; ties go by index. The sum is over the cluster, as in the
    paper; public code for it weighs the distances to all tokens of the image, a slip that is not followed here.

    Options:
        keep: share of the tokens that is left at each site, or one share per site; counted from all N patch tokens of
            the image, int(N · keep^i) after the i-th site.
        sites: 0-based blocks before which it acts, from 1 on; default 3, 6, 9 of 12, scaled to the depth.
        update: what weighs the distances when a medoid is chosen: "weighted", attention received, or "equal", nothing.
        rounds: how often medoids are moved; 0 leaves the tokens of the highest attention received.
        proportional: log-size attention in later blocks, by how many patches a medoid stands for.
    """

    update: Literal["weighted", "equal"] = "weighted"
    rounds: int = 3
    proportional: bool = False

    name = "k-medoids"
    point = "after"
    paper = ("Token Pooling in Vision Transformers", "Marin et al.", 2021, "2110.03860")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 0, self, "rounds", "0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        chosen = checked_sites(self.sites, PUBLISHED_SITES, depth, self.name)
        if self.sites and self.sites[0] == 0:
            raise TokensieveError(
                f"{self.name}: sites start at 1, because the attention of the block before is read, got {[*chosen]}"
            )
        return tuple(site - 1 for site in chosen if site > 0)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"received"})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, share_of_all(layout.patches, self.keep, site))

    def assign(self, view: View) -> Assignment:
        received = view.received
        weight = received if self.update == "weighted" else torch.ones_like(received)
        distances = squared_distances(view.x).sqrt()
        centres, others, onto = medoids(distances, weight, received, view.keep, self.rounds)
        stays = named(centres, view.count).to(weight.dtype)
        return Assignment(keep=centres, moved=others, onto=onto, weight=stays)
