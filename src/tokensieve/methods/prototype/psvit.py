"""PSViT (arXiv 2108.03428)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, scaled_sites
from tokensieve.methods._view import View
from tokensieve.methods.controls import Pruning
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class PSViT(Pruning):
    """Pool tokens between stages, and let neighbouring blocks reuse one attention map.

    Before blocks 4 and 8 of 12 equal stretches of the sequence, neighbours in the image, become one token each, their
    mean. Behind the first site every second block attends by the map of the block before it and computes values only,
    which saves its query and key projections. Both are meant for training, from scratch in the paper, which searches
    where to pool and where to reuse a map.

    A reconstruction: there is no public code, and no number is claimed. Our choice: means weighted by size, of tokens
    next to one another in the rows of the image; sites and the blocks that reuse a map at fixed places. Where another
    method moves tokens between two such blocks, and where their heads differ, the second one computes its own map. The
    map is made again from queries and keys, which costs less than to store it. In models whose query and key
    projections are not layers of their own they are computed in vain.

    Options:
        keep: tokens behind each pooling as a share of those before, or one share per site; round(keep · M).
        sites: 0-based blocks before which tokens are pooled; default 4, 8 of 12, scaled to the depth.
        share: 0-based blocks that reuse the map of the block before, behind the first site; default every second one.
    """

    keep: float | tuple[float, ...] = 0.5
    share: tuple[int, ...] | None = None

    name = "psvit"
    point = "before"
    trained = True
    paper = ("PSViT: Better Vision Transformer via Token Pooling and Attention Sharing", "Chen et al.", 2021,
             "2108.03428")  # fmt: skip

    def blocks(self, depth: int) -> tuple[int, ...]:
        chosen = checked_sites(self.sites, (4, 8), depth, self.name)
        first = chosen[0] if chosen else depth
        late = all(first < block < depth for block in self.share or ())
        require(late, self, "share", f"blocks behind the first site, {first}, and below the depth {depth}")
        return chosen

    def sharing(self, depth: int) -> frozenset[int]:
        sites = scaled_sites((4, 8), depth) if self.sites is None else self.sites
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if self.share is not None:
            return frozenset(self.share)
        if not sites or all(share == 1 for share in shares):
            return frozenset()
        return frozenset(range(sites[0] + 1, depth, 2))

    def assign(self, view: View) -> Assignment:
        places = torch.arange(view.count, device=view.x.device) * view.keep // view.count
        return Assignment.from_index(places.expand(view.x.shape[0], -1), view.keep)
