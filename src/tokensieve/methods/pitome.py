"""PiToMe (arXiv 2405.16148)."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, kept, per_site
from tokensieve.methods._energy import energy, ranked_matching
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.methods.controls import Pruning
from tokensieve.ops.rows import rank_descending
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class PiToMe(Pruning):
    """Protect informative tokens and merge redundant ones: ToMe with sides chosen by an energy.

    In the middle of every block. A token's energy is the mean over all tokens of ELU(cos − m), the cosine being that of
    the keys (mean over heads) and m = margin · (1 − block / depth): high in large groups of like tokens. To remove k,
    the 2k tokens of the highest energy are ranked and each even rank merges into its most similar odd rank; in the
    first half of the blocks all tokens are ranked and the k best edges merge. Merges are weighted by size. Needs no
    training. No number of the paper is claimed here.

    Our choice: the default share, 0.95 in every block; k = M − ceil(keep · M) of the patch tokens, at most half; equal
    energies go by index.

    Options:
        keep: share of the patch tokens present that is left by each block, or one share per block; ceil(keep · M).
        sites: 0-based blocks; default all.
        margin: m of the first block; 0.9 as in the paper, 0.75 as in the authors' code.
        proportional: log-size attention in later blocks.
    """

    keep: float | tuple[float, ...] = 0.95
    margin: float = 0.9
    proportional: bool = True

    paper = (
        "Accelerating Transformers with Spectrum-Preserving Token Merging",
        "Tran et al.",
        2024,
        "2405.16148",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.margin <= 1, self, "margin", "a cosine between 0 and 1")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys"})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return max(kept(patches, per_site(self.keep, site)), patches - patches // 2)

    def fewest(self, patches: int) -> int:
        return patches - patches // 2

    def assign(self, view: View) -> Assignment:
        depth, remove = view.layout.depth, view.count - view.keep
        keys = view.keys
        rank = rank_descending(energy(keys, self.margin * (1 - view.block / depth)))
        candidates = view.count if view.block < depth // 2 else 2 * remove
        keep, moved, onto = ranked_matching(keys, rank, remove, candidates)
        return Assignment(keep=keep, moved=moved, onto=onto)
