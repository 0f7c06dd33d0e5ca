"""DiffRate (arXiv 2305.17997)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tokensieve.methods._config import require
from tokensieve.methods._counts import nearest_share
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import rank_descending, take_rows
from tokensieve.tokens.decision import Assignment

Shares = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DiffRate(Method):
    """Prune and merge by learned numbers: how many tokens each block prunes and merges was learned for a budget.

    In the middle of every block the patch tokens are ordered by class attention; the first N_p stay, and of these the
    last N_p − N_m merge into their most similar token among the first N_m, as plain means. DeiT-S 79.54 top-1 at 2.9
    GMACs with no training of the weights, 79.8 fine-tuned (dense 79.8 at 4.6) [authors, with their schedules].

    The authors' schedules are not among these: they lie in a repository without a licence. The numbers here were
    learned for DeiT-Tiny by benchmarks/diffrate.py, which searches instead of descending a gradient as the paper
    does, on 160 photographs of ten classes by the divergence from the dense model's answers. A schedule learned
    elsewhere goes into ``pruned`` and ``merged``. No number is claimed for ours.

    Our choice: between the budgets learned for, the numbers are interpolated, below the lowest they fall to one token,
    above the highest they rise to all of them; other depths and input sizes take the same shares at the same fractions
    of the depth. Likeness is the cosine of the tokens. Models without a class token score by attention received.

    Options:
        keep: share of the dense model's MACs that DeiT-Tiny has left, about; other models come near it.
        pruned: share of all patch tokens that each block leaves after pruning, one number a block (of 12, say; other
            depths are served alike); None for the numbers learned for ``keep``.
        merged: the same after merging; given with ``pruned``, which then stand in for ``keep``.
        proportional: log-size attention in later blocks.
        sizes: of a merged token, what it adds to the size of the one it joins: its own ("patches", which loses a little
            less) or that times their "cosine", as the authors' code does.
    """

    keep: float = 0.65
    pruned: tuple[float, ...] | None = None
    merged: tuple[float, ...] | None = None
    proportional: bool = True
    sizes: Literal["patches", "cosine"] = "patches"

    knob = "keep"
    paper = (
        "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers",
        "Chen et al.",
        2023,
        "2305.17997",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        for option in ("pruned", "merged"):
            shares = getattr(self, option)
            shares_fit = shares is None or (bool(shares) and all(0 < share <= 1 for share in shares))
            require(shares_fit, self, option, "shares in (0, 1], one for each block")
        both = (self.pruned is None) == (self.merged is None) and len(self.pruned or ()) == len(self.merged or ())
        require(both, self, "merged", "given with pruned and as long as it")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth))

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(self._counts(site, layout)[1], patches)

    def _counts(self, site: int, layout: Layout) -> tuple[int, int]:
        """(N_p, N_m): patch tokens after pruning and after merging in a block."""
        if self.pruned is not None and self.merged is not None:
            rows = self.pruned, self.merged
        else:
            rows = interpolated(self.keep)
        every = layout.patches
        place = max((site + 1) * len(rows[0]) // layout.depth - 1, 0)
        pruned, merged = (nearest_share(every, row[place]) for row in rows)
        return pruned, min(pruned, merged)

    def assign(self, view: View) -> Assignment:
        order = rank_descending(view.importance)
        pruned = min(max(self._counts(view.site, view.layout)[0], view.keep), view.count)
        keep, moved, dropped = order[:, : view.keep], order[:, view.keep : pruned], order[:, pruned:]
        keep = keep.sort(dim=1).values
        if moved.shape[1] == 0:
            return Assignment(keep=keep, dropped=dropped)
        alike = similarity(take_rows(view.x, moved), take_rows(view.x, keep))
        onto = alike.argmax(dim=2)
        if self.sizes == "cosine":
            cosine = alike.gather(2, onto.unsqueeze(2)).squeeze(2).to(view.size.dtype)
            view.resize(view.size.scatter(1, moved, view.size.gather(1, moved) * cosine))
        ones = torch.ones_like(view.size)
        return Assignment(keep=keep, moved=moved, onto=onto, dropped=dropped if dropped.shape[1] else None, weight=ones)


def interpolated(share: float) -> tuple[Shares, Shares]:
    """Shares of the patch tokens after pruning and after merging, for each of 12 blocks, at a share of the MACs."""
    known = {0.0: ((0.0,) * 12,) * 2, **LEARNED, 1.0: ((1.0,) * 12,) * 2}
    low = max(learned for learned in known if learned <= share)
    high = min(learned for learned in known if learned >= share)
    part = (share - low) / (high - low) if high > low else 0.0
    pruned, merged = (
        tuple(a + part * (b - a) for a, b in zip(few, many, strict=True))
        for few, many in zip(known[low], known[high], strict=True)
    )
    return pruned, merged


# Share of DeiT-Tiny's MACs: shares of its patch tokens after pruning and after merging, written by
# benchmarks/diffrate.py.
LEARNED: dict[float, tuple[Shares, Shares]] = {
    0.5: (
        (0.923, 0.858, 0.792, 0.726, 0.659, 0.592, 0.518, 0.435, 0.352, 0.269, 0.186, 0.103),
        (0.923, 0.843, 0.763, 0.682, 0.6, 0.518, 0.435, 0.352, 0.269, 0.186, 0.103, 0.019),
    ),
    0.65: (
        (0.993, 0.974, 0.943, 0.902, 0.851, 0.791, 0.713, 0.612, 0.499, 0.374, 0.238, 0.09),
        (0.988, 0.959, 0.918, 0.865, 0.8, 0.726, 0.642, 0.549, 0.447, 0.336, 0.216, 0.088),
    ),
    0.8: (
        (0.999, 0.997, 0.99, 0.978, 0.96, 0.934, 0.893, 0.83, 0.746, 0.64, 0.509, 0.352),
        (0.999, 0.995, 0.986, 0.968, 0.94, 0.9, 0.845, 0.774, 0.684, 0.575, 0.444, 0.289),
    ),
}
