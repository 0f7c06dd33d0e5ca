"""JMP (Journal of Electronic Imaging 33(4), 043045), a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods._config import require
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.methods.controls import Pruning
from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import split_top, take_rows
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class JMP(Pruning):
    """Joint Merging and Pruning: per image, merge the uncritical tokens or drop them.

    In the middle of blocks 3, 6, 9 of 12 the patch tokens of the highest class attention are critical. Where the others
    are like them, they merge into their most similar critical token, weighted by size; where they are not, they are
    dropped. Needs no training.

    A reconstruction from the abstract, which says that the choice is made per image by the similarity of critical and
    other tokens and no more; no number is claimed. Our choice, all of the rest: the similarity of an image is the mean
    over the other tokens of their largest cosine with a critical one, measured on the keys (mean over heads).

    Options:
        keep: share of the patch tokens present that is critical at each site, or one share per site; round(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        threshold: mean cosine from which on an image merges; -1 always merges, above 1 always prunes.
        proportional: log-size attention in later blocks.
    """

    threshold: float = 0.5
    proportional: bool = True

    paper = (
        "Joint merging and pruning: adaptive selection of better token compression strategy",
        "Peng et al.",
        2024,
        "10.1117/1.JEI.33.4.043045",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(-1 <= self.threshold <= 2, self, "threshold", "a cosine, or above 1 to prune always")

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys", importance_signal(layout)})

    def assign(self, view: View) -> Assignment:
        critical, others = split_top(view.importance, view.keep)
        alike, onto = similarity(take_rows(view.keys, others), take_rows(view.keys, critical)).max(dim=2)
        prunes = alike.mean(dim=1, keepdim=True) < self.threshold
        return Assignment(keep=critical, moved=others, onto=onto.masked_fill(prunes, -1), dropped=others[:, :0])
