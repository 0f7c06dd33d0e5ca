"""SparseVLM (arXiv 2410.04417): image tokens that the relevant words attend to; the best of the rest are clustered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._decoder import Chosen, DecoderView, SeveralLayers, attention_rows, highest
from tokensieve.ops.density import density_peaks
from tokensieve.ops.rows import at_least_float32, one_hot, rank_descending

CLUSTER = 10  # dropped tokens for each one that stands for them


@dataclass(frozen=True, kw_only=True)
class SparseVLM(SeveralLayers):
    """Behind several layers keep the image tokens that relevant words attend to, and means of the best of the others.

    Raters are the words whose share is above the mean: softmax over the words of the products of the hidden states of
    an image token and each word, mean over the image tokens. A token's score is the attention that the raters pay it,
    mean over raters and heads. Of the dropped tokens the best 30 % and one more become density-peak clusters of ten
    each, whose means stand at the places of the best of them.

    Our choice where the paper is silent: raters are chosen anew at each site, from the hidden states there; a mean
    stands at the place of its cluster's centre.

    Options:
        keep: share of the image tokens left behind each site, means not counted, of those there were behind the one
            before; one number for all sites or one for each. Published for 192 tokens: 300, 200 and 110 of 576.
        sites: 1-based numbers of the layers behind which it acts; published: 2, 6 and 15 of 32, scaled to the depth.
        recycle: share of the dropped tokens that is clustered; 0 for none.
    """

    keep: float | tuple[float, ...] = (0.52, 0.667, 0.55)
    recycle: float = 0.3

    paper = (
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        "Zhang et al.",
        2024,
        "2410.04417",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.recycle < 1, self, "recycle", "a share in [0, 1)")

    def published(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(layer * depth / 32)) - 1 for layer in (2, 6, 15)}))

    def left(self, tokens: int, site: int) -> int:
        return sum(self._divided(tokens, site))

    def _divided(self, tokens: int, site: int) -> tuple[int, int]:
        """How many of so many tokens a site keeps, and how many means stand for others."""
        stay = self.share_kept(tokens, site)
        if not self.recycle or stay == tokens:
            return stay, 0
        best = min(tokens - stay, int(self.recycle * (tokens - stay)) + 1)
        return stay, max(1, best // CLUSTER)

    def choose(self, view: DecoderView) -> Chosen:
        stay, means = self._divided(len(view.visual), view.site)
        score = attention_rows(view, self._raters(view)).mean(dim=0)
        order = rank_descending(score.unsqueeze(0))[0]
        if not means:
            return Chosen(order[:stay].sort().values)
        dropped = len(order) - stay
        best = order[stay : stay + min(dropped, int(self.recycle * dropped) + 1)].sort().values
        hidden = view.hidden[view.visual]
        centres, mean = _clusters(hidden[best], means)
        places = torch.cat([order[:stay], best[centres]])
        values = torch.cat([hidden[order[:stay]], mean])
        in_order = places.argsort()
        return Chosen(places[in_order], values[in_order])

    def _raters(self, view: DecoderView) -> Tensor:
        """(R,) the places of the words that are more relevant than the mean; the last token where there is no word."""
        if not len(view.textual):
            return view.visual[-1:]
        image, text = (at_least_float32(view.hidden[places]) for places in (view.visual, view.textual))
        share = (image @ text.T).softmax(dim=1).mean(dim=0)
        above = view.textual[share > share.mean()]
        return above if len(above) else view.textual[highest(share, 1)]


def _clusters(hidden: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Centres (K,), ascending, and the means (K, C) of the clusters around them, of rows (M, C)."""
    centres, others, onto = (part[0] for part in density_peaks(hidden.unsqueeze(0), number))
    member = one_hot(onto.unsqueeze(0), number, hidden.dtype)[0]
    return centres, (hidden[centres] + member @ hidden[others]) / (1 + member.sum(dim=1, keepdim=True))
