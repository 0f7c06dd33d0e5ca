"""MMTok (arXiv 2508.18264): the tokens that cover the text and the image best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from tokensieve.methods._config import require
from tokensieve.methods.language._greedy import cosines_between, covering
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.methods.language._text import cosines
from tokensieve.ops.rows import unit_rows


@dataclass(frozen=True, kw_only=True)
class MMTok(PrefixMethod):
    """Keep the features that cover the text and the other features best: greedy maximum coverage.

    With f(S; M) the sum over rows of the largest entry in the columns S, it maximizes f(S; softmax(M_tv / 0.02)) +
    ½ f(S; softmax(M_vv / 0.2)), one feature after another. M_tv are the cosines of the text around the image, the
    language model's own embeddings, with the features, M_vv those of features with each other; each row is a softmax
    over the features. It takes no ``text_encoder``. Without a text all features are equally relevant: they cover each
    other, and nothing else. Ties go to the lower index.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        text_temperature: of the softmax over cosines with the text.
        image_temperature: of the softmax over cosines of features.
        image_weight: of the coverage of the image against that of the text.
    """

    text_temperature: float = 0.02
    image_temperature: float = 0.2
    image_weight: float = 0.5

    reads_text: ClassVar[bool] = True
    paper = (
        "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs",
        "Dong et al.",
        2025,
        "2508.18264",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.text_temperature > 0, self, "text_temperature", "above 0")
        require(self.image_temperature > 0, self, "image_temperature", "above 0")
        require(self.image_weight >= 0, self, "image_weight", "0 or more")

    def choose(self, view: PrefixView) -> Kept:
        unit = unit_rows(view.features)
        image = self.image_weight * (cosines_between(unit) / self.image_temperature).softmax(dim=2)
        shares = [(words / self.text_temperature).softmax(dim=1) for words in cosines(unit, view.text)]
        text = pad_sequence(shares, batch_first=True)  # rows of zeros, which no feature covers
        return Kept(in_order(covering(torch.cat([text, image], dim=1), view.count)))
