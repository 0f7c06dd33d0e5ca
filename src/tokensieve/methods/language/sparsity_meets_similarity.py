"""Sparsity Meets Similarity (arXiv 2409.01162), a reconstruction: the head of a long tail of class attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.ops.rows import at_least_float32, rank_descending

ROUNDING = 8  # in units of the precision of the dtype: what lies less below the chord lies on it


@dataclass(frozen=True, kw_only=True)
class SparsityMeetsSimilarity(PrefixMethod):
    """Keep the tokens in front of the knee of the sorted class attention of this image.

    Sorted from high to low, attention in the last-but-one block of the tower (class attention, or received where it has
    no class token) is a head and a long tail. With both axes brought to [0, 1] the knee is the point farthest below the
    chord from the first to the last point; the tokens before it stay. So the count follows the image, up to the cap,
    which alone cuts where no point lies below the chord. Ties go to the lower index.

    A reconstruction from the abstract and a review, which say that an inflection point of the similarity to the class
    token cuts, and no more; no number is claimed. Our choice, all of the rest: the knee, and class attention for the
    similarity. The authors cut a second time inside of the decoder, by relevance to the text: apply a decoder method,
    fastv for one, beside it for that.

    Options:
        keep: the most it may keep, as a share of an image's tokens in (0, 1]; 1 leaves the count to the image.
        tokens: the same as a number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
    """

    name = "sparsity-meets-similarity"
    ragged: ClassVar[bool] = True
    paper = (
        "Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic Optimized Token Representation in "
        "Multimodal Large Language Models",
        "Yu et al.",
        2024,
        "2409.01162",
    )

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 2,)

    def choose(self, view: PrefixView) -> Kept:
        attention = at_least_float32(view.tower.importance)
        order = rank_descending(attention)
        head = knee(attention[0, order[0]]) or view.count
        return Kept(in_order(order[:, : min(head, view.count)]))


def knee(curve: Tensor) -> int:
    """Where a falling curve (N) lies farthest below its chord, both axes brought to [0, 1]; 0 where it nowhere does."""
    fall = curve[0] - curve[-1]
    if len(curve) < 3 or not bool(fall > 0):
        return 0
    across = torch.arange(len(curve), device=curve.device, dtype=curve.dtype) / (len(curve) - 1)
    below = 1 - across - (curve - curve[-1]) / fall
    # A straight curve lies on its chord but for rounding.
    return int(below.argmax()) if float(below.amax()) > ROUNDING * torch.finfo(curve.dtype).eps else 0
