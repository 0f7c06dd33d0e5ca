"""Cropr (arXiv 2412.00965)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, per_site
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View
from tokensieve.ops.rows import at_least_float32, split_top
from tokensieve.tokens.decision import Assignment, Until


@dataclass(frozen=True, kw_only=True)
class Cropr(Method):
    """Drop the tokens that a learned query of each block cares least about, and let all return for the last block.

    Behind every block but the last two a token's score is its product with q, the sum of the block's learned queries,
    and the r tokens of the lowest score leave. Before the last block they return with the value they left with
    (last-layer fusion), so that every token passes through it. While training each site has an auxiliary head as well:
    the queries attend to all tokens, the class token too, an MLP and a linear layer turn what they gather into classes,
    and the task's loss on that answer teaches the queries what matters. No gradient reaches the tokens from there.
    Afterwards only q is used. Fresh queries choose at random, so it must be trained, with the model. Its authors report
    EVA-02-L at 89.7 of 89.9 top-1 and 2.1 times the speed, ADE20K at twice the speed for 0.1 mIoU less, ViT-L with r =
    8 [authors], where their first site drops 9 (``r=[9,8,8,…]``).

    The loss is called "cropr": ``weight`` · the cross-entropy of the auxiliary heads, summed over the sites. Our
    choice: the queries read the tokens themselves, scaled by C^-½; several queries' answers are averaged; heads tell
    whole images apart also where the model's own task is a dense one; never fewer than one token is left.

    Options:
        r: tokens that leave at each site, or one number per site.
        sites: 0-based blocks behind which tokens leave; default all but the last two.
        fusion: whether they return for the last block; without, they leave for good.
        queries: learned queries of a site while training; their sum is what is used afterwards.
        classes: of the auxiliary heads; the labels' own number.
        weight: of the auxiliary heads' loss.
    """

    r: int | tuple[int, ...] = 8
    sites: tuple[int, ...] | None = None
    fusion: bool = True
    queries: int = 1
    classes: int = 1000
    weight: float = 1.0

    point = "after"
    knob = "r"
    trained = True
    auxiliary = True
    paper = ("Token Cropr: Faster ViTs for Quite a Few Tasks", "Bergner et al.", 2024, "2412.00965")

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.r if isinstance(self.r, tuple) else (self.r,)
        require(
            bool(numbers) and min(numbers) >= 0, self, "r", "a whole number of tokens, 0 or more, or a list of them"
        )
        require(self.queries >= 1, self, "queries", "1 or more")
        require(self.classes >= 1, self, "classes", "1 or more")
        require(self.weight >= 0, self, "weight", "0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        # A token that left behind the last block but one would return before any block has run without it.
        every = tuple(range(max(depth - 2, 1)))
        return every if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def returns_at(self, site: int, layout: Layout) -> Until:
        return layout.depth - 1 if self.fusion else "end"

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return max(1, patches - per_site(self.r, site))

    def module(self, layout: Layout) -> nn.Module:
        return Router(layout.dim, self.queries, self.classes)

    def assign(self, view: View) -> Assignment:
        router = view.module
        assert isinstance(router, Router)
        if view.training:
            mask = view.tokens.mask
            if mask is not None:
                mask = F.pad(mask, (view.layout.prefix, 0), value=1.0)
            view.add_answer(self.name, router.answer(view.tokens.x.detach(), mask), self.weight)
        keep, dropped = split_top(router(view.x.detach()), view.keep)
        return Assignment(keep=keep, dropped=dropped, until=self.returns_at(view.site, view.layout))


class Router(nn.Module):
    """The learned queries of a site, and the auxiliary head that teaches them.

    Args:
        dim: C, channels of a token.
        queries: Q.
        classes: K.
    """

    def __init__(self, dim: int, queries: int, classes: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, C) to the scores (B, M), in float32 or better."""
        with torch.autocast(x.device.type, enabled=False):  # in half precision there would be ties
            return at_least_float32(x) @ at_least_float32(self.queries).sum(dim=0)

    def answer(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The auxiliary head's classes (B, K) for tokens (B, L, C), of which those masked (B, L) are not read."""
        logits = self.queries @ x.transpose(1, 2) * x.shape[2] ** -0.5
        if mask is not None:
            logits = logits.masked_fill(mask.unsqueeze(1) < 0.5, -torch.inf)
        gathered = logits.softmax(dim=2) @ x
        gathered = gathered + self.mlp(gathered)
        answer: Tensor = self.head(gathered).mean(dim=1)
        return answer
