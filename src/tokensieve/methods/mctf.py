"""MCTF (arXiv 2403.10030)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, removed
from tokensieve.methods._method import Method
from tokensieve.methods._two_way import two_way_matching
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.ops.matching import similarity
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class MCTF(Method):
    """Multi-criteria token fusion: merge tokens that are alike, uninformative and small.

    In every block but the first. The weight of a pair is sim · info^(1/20) · size^(1/40): sim = (cos + 1) / 2 of the
    tokens, info the product of one over the attention each receives, size the product of one over how many patches
    each stands for. Patch tokens alternate between two sides; r/2 edges merge one side into the other and r − r/2
    merge back, on the same weights. Means are weighted by attention received times size.

    One-step-ahead attention: tokens are judged by the attention of the block they merge in, and its map is not computed
    again for the merged ones. The paper merges in front of the attention and sums the columns and averages the rows of
    the map; here the tokens merge behind it, which is the same with every member's own value in place of the value of
    the mean. So the likeness is that of the tokens behind the attention, whose cost is not reduced in the block itself.

    Log-size attention is on, as in the authors' evaluation. Our choice besides: r is cut to half of the tokens present;
    the tokens that stay keep their order, where the authors leave those of the second side sorted by their edges, which
    changes the sides of the next block (``order``). No number is claimed: the published ones (DeiT-S 79.2 top-1 at 2.6
    GMACs with no training, 80.1 fine-tuned) are for merging in front [authors].

    Options:
        r: tokens removed per block (never more than half of those present).
        sites: 0-based blocks; default all but the first.
        info: exponent of the information criterion.
        size: exponent of the size criterion.
        proportional: log-size attention in later blocks.
        order: of the tokens that stay: by their "position", or with those of the second side by their "edge", the best
            first, as in the authors' code.
    """

    r: int = 16
    sites: tuple[int, ...] | None = None
    info: float = 1 / 20
    size: float = 1 / 40
    proportional: bool = True
    order: Literal["position", "edge"] = "position"

    knob = "r"
    paper = (
        "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
        "Lee et al.",
        2024,
        "2403.10030",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 0, self, "r", "a whole number of tokens, 0 or more")
        require(0 <= self.info < float("inf"), self, "info", "an exponent, 0 or more")
        require(0 <= self.size < float("inf"), self, "size", "an exponent, 0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"received"})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - removed(patches, self.r)

    def fewest(self, patches: int) -> int:
        return patches - patches // 2

    def assign(self, view: View) -> Assignment:
        first, remove = view.layout.prefix % 2, view.count - view.keep
        received = view.received
        # Scaling by the largest info and size, as published, changes no order and is left out.
        factor = received.clamp(min=torch.finfo(received.dtype).tiny) ** -self.info * view.size**-self.size
        forth = remove // 2
        weights = self._weights(view.x, factor, first)
        stay_a, stay_b, moved, onto = two_way_matching(weights, forth, remove - forth, by_edge=self.order == "edge")
        positions = torch.arange(view.count, device=moved.device)
        a, b = positions[first::2], positions[1 - first :: 2]
        return Assignment(
            keep=torch.cat([a[stay_a], b[stay_b]], dim=1),
            moved=torch.cat([a[moved[:, :forth]], b[moved[:, forth:]]], dim=1),
            onto=onto,
            weight=received * view.size,
        )

    def _weights(self, x: Tensor, factor: Tensor, first: int) -> Tensor:
        alike = (similarity(x[:, first::2], x[:, 1 - first :: 2]) + 1) / 2
        return alike * factor[:, first::2].unsqueeze(2) * factor[:, 1 - first :: 2].unsqueeze(1)
