"""Vote&Mix (arXiv 2408.17062), a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, kept, per_site
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.methods.controls import Pruning
from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import one_hot, split_top, take_rows
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class VoteMix(Pruning):
    """Vote&Mix: tokens vote for what is most like them, and the most voted are mixed into the rest.

    In the middle of every block each patch token gives its cosine with its most similar token to that token, as a vote.
    The most voted tokens are the most redundant and leave; each of them is spread over the tokens that stay, by a
    softmax over their similarity, and a token that stays becomes the mean of itself and its shares. Needs no training.

    A reconstruction from the abstract and secondary sources; no number is claimed. Our choice, all of the rest: the
    cosine of the keys (mean over heads), behind the attention instead of inside it, the temperature, the default share;
    a token that left returns with its last value, and there is no log-size attention.

    Options:
        keep: share of the patch tokens present that is left by each block, or one share per block; ceil(keep · M).
        sites: 0-based blocks; default all.
        temperature: of the softmax; small ones mix each token into its most similar one.
    """

    keep: float | tuple[float, ...] = 0.95
    temperature: float = 0.1

    name = "vote-mix"
    paper = (
        "Vote&Mix: Plug-and-Play Token Reduction for Efficient Vision Transformer",
        "Peng et al.",
        2024,
        "2408.17062",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.001 <= self.temperature < float("inf"), self, "temperature", "0.001 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys"})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return kept(patches, per_site(self.keep, site))

    def assign(self, view: View) -> Assignment:
        keys = view.keys
        alike = similarity(keys, keys)
        itself = torch.eye(view.count, dtype=torch.bool, device=keys.device)
        vote, chosen = alike.masked_fill(itself, -torch.inf).max(dim=2)
        votes = (one_hot(chosen, view.count, vote.dtype) * vote.clamp(min=0).unsqueeze(1)).sum(dim=2)
        keep, dropped = split_top(-votes, view.keep)
        shares = take_rows(alike, dropped).gather(2, keep.unsqueeze(1).expand(-1, dropped.shape[1], -1))
        spread = (shares / self.temperature).softmax(dim=2).transpose(1, 2)
        return Assignment(keep=keep, dropped=dropped, spread=spread)
