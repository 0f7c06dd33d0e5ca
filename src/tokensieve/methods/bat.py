"""BAT (arXiv 2211.11315): with defaults for models that are not fine-tuned, and in the paper's setting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from tokensieve.methods._attentive import pair_and_cluster
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, kept, per_site
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class BAT(Method):
    """Beyond Attentive Tokens: keep the important tokens and keep the others' diversity.

    In the middle of a few blocks class attention decouples the patch tokens: the top K = ceil(keep · M) are attentive,
    the rest inattentive. Of the attentive ones the m most similar disjoint pairs merge; the inattentive ones are
    clustered around c density peaks, and each cluster becomes one token. K − m + c tokens remain. No parameters.

    These defaults are for pretrained models without fine-tuning: more and gentler sites than published, merges weighted
    by token size, log-size attention; found by a search with DeiT-Tiny on 500 photographs (benchmarks/README.md),
    some of the 1000 of the README's table. The published setting, for fine-tuning, is the method ``bat-paper``.

    Our choice where the paper is silent, each an option: head mean of class attention, ceil, pairs measured by the
    cosine of the tokens and taken greedily, density averaged over all inattentive tokens, c as a share of M − K, m = c
    less ``surplus``. A sample with too few mutual pairs is completed with neighbouring free tokens. Models without a
    class token score by attention received.

    Options:
        keep: share of the patch tokens present that is attentive at each site, or one share per site.
        sites: 0-based blocks; default 3, 4, 6, 8, 10 of 12, scaled to the depth.
        clusters: clusters as a share of the inattentive tokens, round(clusters · (M − K)), or one share per site.
        surplus: c − m, how many more clusters than pairs, or one number per site; m is cut to K // 2, c with it.
        weight: of a token in a merge: its "size", its "class" attention, or "equal".
        proportional: log-size attention in later blocks.
        metric: what pairs are matched by and clusters measured on: "x", the tokens themselves, or "keys".
        rounds: rounds of mutual nearest neighbours in the matching.
    """

    keep: float | tuple[float, ...] = 0.72
    sites: tuple[int, ...] | None = None
    clusters: float | tuple[float, ...] = 0.35
    surplus: int | tuple[int, ...] = 0
    weight: Literal["size", "class", "equal"] = "size"
    proportional: bool = True
    metric: Literal["x", "keys"] = "x"
    rounds: int = 4

    knob = "keep"
    paper = (
        "Beyond Attentive Tokens: Incorporating Token Importance and Diversity for Efficient Vision Transformers",
        "Long et al.",
        2022,
        "2211.11315",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("keep", "clusters"):
            value = getattr(self, option)
            shares = value if isinstance(value, tuple) else (value,)
            require(bool(shares) and all(0 < share <= 1 for share in shares), self, option, "a share in (0, 1]")
        require(self.rounds >= 1, self, "rounds", "1 or more")

    def _published_sites(self) -> tuple[int, ...]:
        return (3, 4, 6, 8, 10)

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, self._published_sites(), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        score = importance_signal(layout)
        return frozenset({score, "keys"}) if self.metric == "keys" else frozenset({score})

    def counts(self, patches: int, site: int, left: int | None = None) -> tuple[int, int, int]:
        """(K, m, c): attentive tokens, pairs among them, clusters of the others.

        With ``left``, K moves until K − m + c is that number, and m and c follow it.
        """
        if torch.compiler.is_dynamo_compiling():  # looks through a cache, and says so
            return self._count(patches, site, left)
        return _counted(self, patches, site, left)

    def _count(self, patches: int, site: int, left: int | None) -> tuple[int, int, int]:
        attentive, pairs, clusters = self._divide(patches, site, kept(patches, per_site(self.keep, site)))
        for _ in range(8):
            if left is None or left == attentive - pairs + clusters:
                return attentive, pairs, clusters
            attentive = max(1, min(patches - 1, left + pairs - clusters))
            attentive, pairs, clusters = self._divide(patches, site, attentive)
        assert left is not None
        # Where m or c is at a bound, the rest of the difference goes into the other.
        pairs += attentive - pairs + clusters - left
        missing = max(0, -pairs) - max(0, pairs - attentive // 2)
        return attentive, pairs + missing, clusters + missing

    def _divide(self, patches: int, site: int, attentive: int) -> tuple[int, int, int]:
        others = patches - attentive
        if others == 0:
            return attentive, 0, 0
        clusters = min(max(1, math.floor(per_site(self.clusters, site) * others + 0.5)), others)
        wanted = max(0, clusters - per_site(self._surplus(site), site))
        pairs = min(wanted, attentive // 2)
        # Where there are too few attentive tokens for the pairs, c goes down with m and c - m stays.
        return attentive, pairs, max(1, clusters - (wanted - pairs))

    def _surplus(self, site: int) -> int | tuple[int, ...]:
        return self.surplus

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        attentive, pairs, clusters = self.counts(patches, site)
        return attentive - pairs + clusters

    def assign(self, view: View) -> Assignment:
        counts = self.counts(view.count, view.site, view.keep)
        score = view.importance
        x, prefix = (view.tokens.x, view.layout.prefix) if self.metric == "x" else (view.keys, 0)
        keep, moved, onto = pair_and_cluster(x, prefix, score, *counts, self.rounds)
        return Assignment(keep=keep, moved=moved, onto=onto, weight=self._weights(score))

    def _weights(self, score: Tensor) -> Tensor | None:
        if self.weight == "size":
            return None
        return score if self.weight == "class" else torch.ones_like(score)


@cache
def _counted(method: BAT, patches: int, site: int, left: int | None) -> tuple[int, int, int]:
    """``BAT.counts``, which takes longer to work out than a kernel to run."""
    return method._count(patches, site, left)


@dataclass(frozen=True, kw_only=True)
class BATPaper(BAT):
    """BAT as published, for fine-tuning: blocks 3, 6, 9 of 12, merges weighted by class attention.

    Everything else is as in ``bat``. The default ``surplus`` reproduces the MACs of the authors' training logs for
    DeiT-S to about 0.4 % at keep 0.7, 0.6, 0.5, 0.4, 0.3 and 0.2 and is 0 for other shares. Fine-tuned DeiT-S: 79.6
    top-1 at 3.0 GMACs (keep 0.7), 79.0 at 2.34 (0.5), 76.4 at 1.65 (0.2); dense 79.8 at 4.6 [authors' logs]. With no
    training ``bat`` loses less.

    Options:
        keep: share of the patch tokens present that is attentive at each site, or one share per site.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        clusters: clusters as a share of the inattentive tokens, round(clusters · (M − K)), or one share per site.
        surplus: c − m, how many more clusters than pairs; None takes the authors' number for this ``keep``.
        weight: of a token in a merge: its "class" attention, its "size", or "equal".
        proportional: log-size attention in later blocks.
        metric: what pairs are matched by and clusters measured on: "x", the tokens themselves, or "keys".
        rounds: rounds of mutual nearest neighbours in the matching.
    """

    keep: float | tuple[float, ...] = 0.7
    clusters: float | tuple[float, ...] = 0.5
    surplus: int | tuple[int, ...] | None = None  # type: ignore[assignment]
    weight: Literal["size", "class", "equal"] = "class"
    proportional: bool = False

    name = "bat-paper"

    def _published_sites(self) -> tuple[int, ...]:
        return (3, 6, 9)

    def _surplus(self, site: int) -> int | tuple[int, ...]:
        if self.surplus is not None:
            return self.surplus
        return LOGGED_SURPLUS.get(round(per_site(self.keep, site), 3), 0)


# c − m per stage that reproduces the GMACs in the authors' logs.
LOGGED_SURPLUS = {0.7: 0, 0.6: -1, 0.5: 3, 0.4: 3, 0.3: 1, 0.2: 1}
