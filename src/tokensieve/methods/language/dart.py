"""DART (arXiv 2502.11494): of each of a few pivots the image tokens that are least like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._config import require
from tokensieve.methods.language._decoder import Chosen, DecoderView, EarlyLayer, highest
from tokensieve.ops.rows import at_least_float32, unit_rows


@dataclass(frozen=True, kw_only=True)
class DART(EarlyLayer):
    """Behind an early layer keep a few pivots and the image tokens that duplicate them least. No attention is read.

    Pivots are the image and the text tokens whose keys have the largest L1 norm, heads side by side. One after the
    other takes an equal part of what may stay: the image tokens least like it, by the cosine of the hidden states,
    that nobody took before. Image pivots stay. Where parts do not divide evenly the first pivots take one more.

    Options:
        keep: share of the image tokens of a sequence to keep, in (0, 1].
        layer: how many layers see all tokens; published: 2.
        pivots: how many of the image, and as many of the text; published: 4.
    """

    keep: float = 0.222
    layer: int = 2
    pivots: int = 4

    paper = (
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        "Wen et al.",
        2025,
        "2502.11494",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pivots >= 1, self, "pivots", "1 or more")

    def choose(self, view: DecoderView) -> Chosen:
        norm = at_least_float32(view.keys).abs().sum(dim=(0, 2))
        of_image = highest(norm[view.visual], min(self.pivots, view.count, len(view.visual)))
        of_text = highest(norm[view.textual], min(self.pivots, len(view.textual)))
        unit = unit_rows(view.hidden.unsqueeze(0))[0]
        pivots = torch.cat([view.visual[of_image], view.textual[of_text]])
        likeness = unit[pivots] @ unit[view.visual].T
        taken = torch.zeros(len(view.visual), dtype=torch.bool, device=likeness.device)
        taken[of_image] = True
        room = view.count - len(of_image)
        parts = [room // len(pivots) + (number < room % len(pivots)) for number in range(len(pivots))]
        for row, part in zip(likeness, parts, strict=True):
            taken[row.masked_fill(taken, torch.inf).argsort(stable=True)[:part]] = True
        return Chosen(taken.nonzero().squeeze(1))
