"""FastV (arXiv 2403.06764): the image tokens that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods.language._decoder import Chosen, DecoderView, EarlyLayer, highest, last_row


@dataclass(frozen=True, kw_only=True)
class FastV(EarlyLayer):
    """Behind an early layer of the decoder keep the image tokens that the last token of the prompt attends to.

    The score of a token is the attention that the last token pays it, mean over heads, in that layer. No parameters.
    Ties go to the lower index.

    Options:
        keep: share of the image tokens of a sequence to keep, in (0, 1].
        layer: how many layers see all tokens; published: 2, 3 or 5.
    """

    keep: float = 0.5
    layer: int = 3

    paper = (
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language "
        "Models",
        "Chen et al.",
        2024,
        "2403.06764",
    )

    def choose(self, view: DecoderView) -> Chosen:
        return Chosen(highest(last_row(view), view.count))
