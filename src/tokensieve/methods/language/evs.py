"""EVS (arXiv 2510.14624): of a video, the features that changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.errors import RefusedError
from tokensieve.methods.language._frames import frames_of
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView
from tokensieve.ops.rows import split_top, unit_rows


@dataclass(frozen=True, kw_only=True)
class EVS(PrefixMethod):
    """Keep the features of a video that are least like those at the same place in the frame before.

    They are ranked over the whole video by 1 − cos, and the first frame stays whole. Ties go to the lower index. It is
    refused where the features are those of no video, where they do not lie frame by frame, and where it is asked for
    fewer tokens than the first frame has.

    Options:
        keep: share of a video's tokens to keep, in (0, 1]; at least 1 / frames. The published rate q is 1 − keep.
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
    """

    paper = (
        "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
        "Bagrov et al.",
        2025,
        "2510.14624",
    )

    def choose(self, view: PrefixView) -> Kept:
        videos, frames, places, _ = frames_of(view).shape
        if view.count < places:
            raise RefusedError(
                f"{self.name} keeps the first frame of a video whole, {places} of {frames * places} tokens, and {self} "
                f"leaves {view.count}: give tokens={places} or more, or a keep of 1/{frames} or more"
            )
        unit = unit_rows(view.features).unflatten(1, (frames, places))
        # 1 − cos, and exactly 0 where nothing changed, whatever the rounding
        changed = (unit[:, 1:] - unit[:, :-1]).square().sum(dim=3) / 2
        first = changed.new_full((videos, places), torch.inf)
        return Kept(split_top(torch.cat([first, changed.flatten(1)], dim=1), view.count)[0])
