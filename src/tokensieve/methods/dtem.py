"""DTEM (arXiv 2412.10569)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, per_site, removed
from tokensieve.methods._method import Method
from tokensieve.methods._relaxed import relaxed_matching
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.ops.matching import bipartite_matching
from tokensieve.tokens.decision import Assignment, Decision
from tokensieve.tokens.soft import SoftAssignment


@dataclass(frozen=True, kw_only=True)
class DTEM(Method):
    """Merge tokens that a small learned embedding finds alike: ToMe with features of its own to match by.

    In the middle of every block a linear map of what its attention is given, which nothing else reads, says how alike
    the tokens are. The r best edges between the two halves of the tokens merge, weighted by size, as in ToMe. While
    training the matching is relaxed and no token leaves: of each token of one half the 3 best edges are looked at, and
    r times in turn a softmax over all edges of the image takes one of them in parts, and closes those of the token that
    went; what a token has given away is taken from its size, and its partners become the mean. So the map has a
    gradient, which does not reach the tokens. It can be trained alone with the model frozen (``train_only``) or with
    it. DeiT-S 79.85 top-1 with 37.2 % fewer MACs (dense 79.8) [abstract].

    Written from the formulas of the authors' public code, and not run beside it. While training, tokens that were given
    away stay among those that later sites match, at the little size that they have left. Our choice: the map starts as
    torch starts a linear layer.

    Options:
        r: tokens removed per block, or one number per site; never more than half of those present.
        sites: 0-based blocks; default all.
        width: channels of the map; default those of a head, twice as many from 1024 channels on.
        temperature: of the softmax over edges while training.
        relaxed: whether the matching is relaxed while training; without, the model trains on the merges that are made
            and the maps do not change.
        proportional: log-size attention in later blocks.
    """

    r: int | tuple[int, ...] = 8
    sites: tuple[int, ...] | None = None
    width: int | None = None
    temperature: float = 0.1
    relaxed: bool = True
    proportional: bool = True

    knob = "r"
    trained = True
    mixes = True
    paper = (
        "Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers",
        "Lee and Hong",
        2024,
        "2412.10569",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.r if isinstance(self.r, tuple) else (self.r,)
        require(
            bool(numbers) and min(numbers) >= 0, self, "r", "a whole number of tokens, 0 or more, or a list of them"
        )
        require(self.width is None or self.width >= 1, self, "width", "1 or more, or none")
        require(self.temperature > 0, self, "temperature", "above 0")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - removed(patches, per_site(self.r, site))

    def fewest(self, patches: int) -> int:
        return patches - removed(patches, patches)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"inputs"})

    def module(self, layout: Layout) -> nn.Module:
        own = layout.dim // layout.heads * (2 if layout.dim >= 1024 else 1)
        return nn.Linear(layout.dim, own if self.width is None else self.width)

    def assign(self, view: View) -> Decision:
        assert view.module is not None
        metric = view.module(view.inputs)
        first = view.layout.prefix % 2  # sides are counted over all tokens, as in ToMe
        remove = view.count - view.keep
        if not (view.training and self.relaxed):
            keep, moved, onto = bipartite_matching(metric, remove, first)
            return Assignment(keep=keep, moved=moved, onto=onto)
        if view.tokens.mask is not None:
            raise TokensieveError(
                f"{self.name} relaxes its matching while training, and tokens before it are masked: train it alone, or "
                "with relaxed=false"
            )
        moves = relaxed_matching(metric, remove, first, self.temperature)
        weighed: Tensor = (moves * view.size.unsqueeze(2)).transpose(1, 2)
        mean = weighed / weighed.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
        return SoftAssignment(matrix=mean, restore=moves)
