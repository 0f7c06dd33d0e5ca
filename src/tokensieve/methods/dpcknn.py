"""DPC-KNN (arXiv 2204.08680)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokensieve.methods._config import require
from tokensieve.methods._counts import share_of_all
from tokensieve.methods._view import Layout, View
from tokensieve.methods.controls import Pruning
from tokensieve.ops.density import density_peaks
from tokensieve.ops.rows import at_least_float32
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class DPCKNN(Pruning):
    """Cluster the tokens around the peaks of their density and merge each cluster, as TCFormer does between its stages.

    Before blocks 3, 6, 9 of 12: a token's density is exp(−mean of the squared distances to its ``neighbours`` nearest
    tokens), δ its distance to the nearest denser token; the int(N · keep^i) tokens of the largest density · δ are
    centres and every other token joins its nearest centre. Reads no attention. Needs no training with equal weights;
    TCFormer trains the weights exp(w · x + b) with which the members of a cluster merge.

    Our choice: no random noise on the density, equal values go by index; a token is not its own neighbour, which it is
    in the authors' code (``itself``); a fresh learned weight is the equal one. No number is published for this setting
    on a plain ViT.

    Options:
        keep: share of the tokens that is left at each site, or one share per site; counted from all N patch tokens of
            the image, int(N · keep^i) after the i-th site.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        neighbours: nearest tokens that the density averages over.
        itself: whether a token is the nearest of its own neighbours, at distance 0.
        weight: of a token in a merge: "equal", its "size", or "learned", exp(w · x + b), to be trained.
        proportional: log-size attention in later blocks.
    """

    neighbours: int = 5
    itself: bool = False
    weight: Literal["equal", "size", "learned"] = "equal"
    proportional: bool = False

    name = "dpc-knn"
    point = "before"
    paper = (
        "Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer",
        "Zeng et al.",
        2022,
        "2204.08680",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.neighbours >= 1, self, "neighbours", "1 or more")

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, share_of_all(layout.patches, self.keep, site))

    def module(self, layout: Layout) -> nn.Module | None:
        if self.weight != "learned":
            return None
        linear = nn.Linear(layout.dim, 1)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    def assign(self, view: View) -> Assignment:
        neighbours = min(self.neighbours, view.count - (not self.itself))
        centres, others, onto = density_peaks(view.x, view.keep, neighbours, self.itself)
        return Assignment(keep=centres, moved=others, onto=onto, weight=self._weight(view))

    def _weight(self, view: View) -> Tensor | None:
        if self.weight == "size":
            return None
        if view.module is None:
            return torch.ones_like(view.size)
        logit = at_least_float32(view.module(view.x).squeeze(2))
        return (logit - logit.amax(dim=1, keepdim=True)).exp()  # only ratios matter: no weight overflows
