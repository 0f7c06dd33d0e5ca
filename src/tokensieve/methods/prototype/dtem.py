"""DTEM (arXiv 2412.10569)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.methods._counts import checked_sites, per_site, removed
from tokensieve.methods._method import Method, require
from tokensieve.methods._relaxed import relaxed_matching
from tokensieve.methods._view import Layout, View
from tokensieve.ops.matching import bipartite_matching
from tokensieve.tokens.decision import Assignment, Decision
from tokensieve.tokens.soft import SoftAssignment


@dataclass(frozen=True, kw_only=True)
class DTEM(Method):
    """Merge tokens that a small learned embedding finds alike: ToMe with features of its own to match by.

    In the middle of every block a linear embedding of the tokens, which nothing else reads, says how alike they are.
    The r best edges between the two halves of the tokens merge, weighted by size, as in ToMe. While training the
    matching is relaxed: every token of one half moves to all of the other half in part, so that the embedding has a
    gradient. The embeddings can be trained alone with the model frozen (``train_only``) or with it. DeiT-S 79.85 top-1
    with 37.2 % fewer MACs (dense 79.8) [abstract].

    A reconstruction from the abstract and the structure it describes. Our choice: the embedding is a layer norm and a
    linear layer, of tokens without gradient; a token's share of each partner is a softmax of their cosines /
    ``temperature``, the part of it that moves a sigmoid around the middle between the r-th and the next best edge; the
    r tokens of the best edges move wholly, in the backward pass in that part. As ``temperature`` falls this becomes the
    merge itself.

    Options:
        r: tokens removed per block, or one number per site; never more than half of those present.
        sites: 0-based blocks; default all.
        width: channels of the embedding.
        temperature: of the relaxation.
        relaxed: whether the matching is relaxed while training; without, the model trains on the merges that are made
            and the embeddings do not change.
        proportional: log-size attention in later blocks.
    """

    r: int | tuple[int, ...] = 8
    sites: tuple[int, ...] | None = None
    width: int = 64
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
        require(self.width >= 1, self, "width", "1 or more")
        require(self.temperature > 0, self, "temperature", "above 0")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - removed(patches, per_site(self.r, site))

    def fewest(self, patches: int) -> int:
        return patches - removed(patches, patches)

    def module(self, layout: Layout) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(layout.dim), nn.Linear(layout.dim, self.width))

    def assign(self, view: View) -> Decision:
        assert view.module is not None
        metric = view.module(view.x.detach())
        first = view.layout.prefix % 2  # sides are counted over all tokens, as in ToMe
        keep, moved, onto = bipartite_matching(metric, view.count - view.keep, first)
        if not (view.training and self.relaxed):
            return Assignment(keep=keep, moved=moved, onto=onto)
        if view.tokens.mask is not None:
            raise TokensieveError(
                f"{self.name} relaxes its matching while training, and tokens before it are masked: train it alone, or "
                "with relaxed=false"
            )
        moves = relaxed_matching(metric, keep, moved, first, self.temperature)
        weighed: Tensor = (moves * view.size.unsqueeze(2)).transpose(1, 2)
        mean = weighed / weighed.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
        return SoftAssignment(matrix=mean, restore=moves)
