"""EViT (arXiv 2202.07800)."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods._counts import kept, per_site
from tokensieve.methods._fusing import split_fused
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.methods.controls import Pruning
from tokensieve.ops.rows import split_top
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class EViT(Pruning):
    """Keep the tokens that the class token attends to most and fuse the others into one.

    In the middle of blocks 3, 6, 9 of 12 the K = ceil(keep · M) patch tokens of the highest class attention a stay; the
    dropped ones become one token Σ a_j x_j, not normalised, which is an ordinary token afterwards. Made for fine-tuning
    (30 epochs, learning rate 2e-5); works off the shelf at a cost in accuracy. DeiT-S 79.5 top-1 at 3.0 GMACs and
    78.5 at 2.3 (dense 79.8 at 4.6), fine-tuned [authors].

    Our choice: models without a class token score by attention received.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site; ceil(keep · M).
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        fuse: whether the dropped tokens are fused into one; False is plain top-K.
    """

    fuse: bool = True

    paper = (
        "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
        "Liang et al.",
        2022,
        "2202.07800",
    )

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        left = kept(patches, per_site(self.keep, site))
        # One dropped token alone has no other to be fused with: fusing it would only rescale it, so it counts as kept.
        return min(left + 1, patches) if self.fuse else left

    def assign(self, view: View) -> Assignment:
        score = view.importance
        if not self.fuse:
            keep, dropped = split_top(score, view.keep)
            return Assignment(keep=keep, dropped=dropped)
        # The most attentive of the dropped tokens leads the fused one and lends it its position.
        keep, moved, onto = split_fused(score, view.keep)
        return Assignment(keep=keep, moved=moved, onto=onto, weight=score, reduce="sum")
