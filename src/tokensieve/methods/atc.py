"""ATC (arXiv 2409.11923)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokensieve.methods._agglomerative import agglomerate, cosine_distances
from tokensieve.methods._counts import share_of_all
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.methods.controls import Pruning
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class ATC(Pruning):
    """Agglomerative Token Clustering: join the two nearest clusters of tokens until few enough are left, then merge.

    In the middle of blocks 3, 6, 9 of 12. The distance of two tokens is one minus the cosine of their keys (mean over
    heads); that of two clusters is set by ``linkage``. int(N · keep^i) clusters are left after the i-th site and
    become their size-weighted means. Needs no training, the paper also fine-tunes; its authors find it the strongest at
    low shares. No number of theirs is claimed here.

    Our choice: the whole batch is clustered at once, with the clusters of scikit-learn where all distances differ;
    equally near pairs are joined in order of position; average linkage and log-size attention by default, without
    which DeiT-Tiny off the shelf loses several points more.

    Options:
        keep: share of the tokens that is left at each site, or one share per site; counted from all N patch tokens of
            the image, int(N · keep^i) after the i-th site.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        linkage: distance of two clusters: the smallest ("single"), largest ("complete") or mean ("average") of members.
        metric: what distances are measured on: "keys" as published, or "x", the tokens themselves.
        proportional: log-size attention in later blocks.
    """

    linkage: Literal["single", "complete", "average"] = "average"
    metric: Literal["keys", "x"] = "keys"
    proportional: bool = True

    paper = ("Agglomerative Token Clustering", "Haurum et al.", 2024, "2409.11923")

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys"}) if self.metric == "keys" else frozenset()

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, share_of_all(layout.patches, self.keep, site))

    def assign(self, view: View) -> Assignment:
        features = view.keys if self.metric == "keys" else view.x
        groups = agglomerate(cosine_distances(features), view.keep, self.linkage)
        return Assignment.from_index(groups, view.keep)
