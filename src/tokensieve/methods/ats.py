"""ATS (arXiv 2111.15667): as published, and with a number of samples that follows a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokensieve.attention.scores import value_weighted
from tokensieve.attention.signals import voters_of
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, per_site, share_of_all
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.tokens.decision import Assignment, ragged


@dataclass(frozen=True, kw_only=True)
class ATS(Method):
    """Adaptive Token Sampling: draw tokens by their scores, and let each image keep as many as were drawn.

    In the middle of blocks 3 to 11 of 12 a patch token's score is its class attention times the length of its value
    vector, normalised to sum to one. The scores are sorted and summed up, and a fixed grid of levels is looked up in
    that distribution: a token stays if any level falls on it, so the number that stay depends on the image. Dropping
    rows behind the attention is what the paper does inside it. Needs no training. DeiT-B with none, at 15.3, 13.1,
    11.6, 9.8 and 8.8 GMACs: 81.8, 81.7, 81.4, 80.5 and 79.6 top-1; DeiT-S 79.7 at 2.9 fine-tuned [authors].

    Our choice: K levels (2i − 1) / 2K, each taking the first token whose summed score reaches it; equal scores go by
    index. The authors' code (``levels="published"``) scales the sums to [0, 1] by the least and the largest, spreads
    the levels evenly from the smallest above 0 to 1, and takes the nearest sum. An image's answer does not depend on
    its batch: short images are padded and the padding masked out. Models without a class token score by attention
    received.

    Options:
        samples: K, levels at each site, or one number per site; None for as many as the image has patches.
        sites: 0-based blocks; default 3 to 11 of 12, scaled to the depth.
        levels: which values are looked up and how: "even", ours, or "published", 2 samples at least.
    """

    samples: int | tuple[int, ...] | None = None
    sites: tuple[int, ...] | None = None
    levels: Literal["even", "published"] = "even"

    ragged = True
    paper = ("Adaptive Token Sampling for Efficient Vision Transformers", "Fayyaz et al.", 2021, "2111.15667")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None:
            numbers = self.samples if isinstance(self.samples, tuple) else (self.samples,)
            fewest = 2 if self.levels == "published" else 1
            require(all(n >= fewest for n in numbers), self, "samples", f"{fewest} or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, tuple(range(3, 12)), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"logits", importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, self._levels(site, layout))

    def _levels(self, site: int, layout: Layout) -> int:
        return layout.patches if self.samples is None else per_site(self.samples, site)

    def assign(self, view: View) -> Assignment:
        voters = voters_of(view.alive, view.layout.prefix)
        score = view.score(value_weighted(view.attended, view.layout.class_token, voters))
        return ragged(self._drawn(score, view))

    def _drawn(self, score: Tensor, view: View) -> Tensor:
        """(B, M) bool: which tokens stay."""
        sample = inverse_samples if self.levels == "even" else nearest_samples
        drawn = sample(score, self._levels(view.site, view.layout))
        return drawn if view.alive is None else drawn & view.alive


@dataclass(frozen=True, kw_only=True)
class ATSShare(ATS):
    """ATS with fewer samples at fewer sites, as in comparisons at a given share: int(N · keep^i) levels at 3, 6, 9.

    Everything else is as in ``ats``. At most int(N · keep^i) tokens are left after the i-th site and mostly fewer, the
    images' own choice. Needs no training. No number is claimed for this setting.

    Options:
        keep: samples at each site as a share of those before, or one share per site; int(N · keep^i) of the N patch
            tokens of the image. 1 removes nothing.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        samples: levels at each site in place of the number that ``keep`` gives, or one number per site.
        levels: as in ``ats``.
    """

    keep: float | tuple[float, ...] = 0.7

    name = "ats-share"
    knob = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(bool(shares) and all(0 < share <= 1 for share in shares), self, "keep", "a share in (0, 1]")

    def blocks(self, depth: int) -> tuple[int, ...]:
        chosen = checked_sites(self.sites, (3, 6, 9), depth, self.name)
        return () if self.keep == 1 and self.samples is None else chosen

    def _levels(self, site: int, layout: Layout) -> int:
        if self.samples is not None:
            return super()._levels(site, layout)
        return share_of_all(layout.patches, self.keep, site)


def nearest_samples(score: Tensor, levels: int) -> Tensor:
    """Inverse transform sampling as the authors' code does it: each level draws the token of the nearest summed score.

    Args:
        score: (B, M), not negative; -inf counts as zero. Equal scores keep their order.
        levels: K, 2 at least. The sums y by rising score are scaled to [0, 1] by the first and the last of them; the
            levels lie evenly from the smallest y above 0 to 1, and of two equally near sums the smaller one is drawn.

    Returns:
        (B, M) bool, at least one True in a row.
    """
    score = score.detach()
    present = score > -torch.inf
    rising, order = score.clamp(min=0).masked_fill(~present, -1).sort(dim=1, stable=True)
    summed = rising.clamp(min=0).cumsum(dim=1)
    last = summed[:, -1:]
    least = summed.masked_fill(rising < 0, torch.inf).amin(dim=1, keepdim=True)
    tiny = torch.finfo(summed.dtype).tiny
    scaled = (summed - least) / (last - least).clamp(min=tiny)
    scaled = scaled.masked_fill(rising < 0, -torch.inf)
    start = scaled.masked_fill(scaled <= 0, torch.inf).amin(dim=1, keepdim=True).clamp(max=1)
    part = torch.arange(levels, device=score.device, dtype=score.dtype) / max(levels - 1, 1)
    wanted = start + part * (1 - start)
    above = torch.searchsorted(scaled, wanted).clamp(max=score.shape[1] - 1)
    below = torch.searchsorted(scaled, scaled.gather(1, (above - 1).clamp(min=0)))
    nearer = (scaled.gather(1, above) - wanted).abs() < (wanted - scaled.gather(1, below)).abs()
    place = torch.where(nearer, above, below)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order.gather(1, place), True)


def inverse_samples(score: Tensor, levels: int) -> Tensor:
    """Inverse transform sampling on a fixed grid (Fayyaz et al. 2021, arXiv 2111.15667): which tokens are drawn.

    Args:
        score: (B, M), not negative; -inf counts as zero. Equal scores keep their order.
        levels: K; level i = 1 … K is (2i − 1) / 2K and draws the first token, by rising score, whose summed share of
            the scores reaches it.

    Returns:
        (B, M) bool, at least one True in a row.
    """
    score = score.detach().clamp(min=0)
    rising, order = score.sort(dim=1, stable=True)
    summed = rising.cumsum(dim=1)
    grid = (torch.arange(levels, device=score.device, dtype=score.dtype) + 0.5) / levels
    # Compared with the levels of the whole sum and not divided by it: what it is does not depend on any padding.
    place = torch.searchsorted(summed, grid * summed[:, -1:]).clamp(max=score.shape[1] - 1)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order.gather(1, place), True)
