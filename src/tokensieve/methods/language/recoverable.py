"""Recoverable Compression (arXiv 2409.01179): what the tower attends to, and what the text recovers of the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._outliers import outliers
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView
from tokensieve.methods.language._text import compared, mean_cosine
from tokensieve.ops.rows import at_least_float32, unit_rows

NEIGHBOURS = 20  # of the outlier factor that counts tokens to keep
NEIGHBOURS_OF_CENTRES = 10  # of the one that counts centres


@dataclass(frozen=True, kw_only=True)
class RecoverableCompression(PrefixMethod):
    """Keep as many tokens as stand out by class attention, recover as many as stand out by the text, merge the rest.

    With v the class attention of the last-but-one block of the tower and t the cosine with the text times D^−½:

    1. Of highest v as many stay as the Local Outlier Factor (20 neighbours) finds outliers among all v.
    2. Of the others, of highest t as many stay as it finds outliers among their t.
    3. Of the rest, of highest v as many are centres as are the share of outliers of v there (10 neighbours) times the
       tokens kept so far, rounded down. Each becomes centre + Σ v_j x_j over the 32 that are most like it by cosine of
       keys + 50 t_j; centres take in the order of their v, and nothing is taken twice.
    4. What is left becomes one more token Σ v_j x_j, at the place of the last of them.

    So the count follows the image and the text, up to the cap: what comes later in this list is cut first. Ties go to
    the lower index. The authors' v does not split heads, here it is the mean over heads (attention received where the
    tower has no class token), as are the keys. With a ``text_encoder``, as they have it, t is of the projected last
    patches of the tower and the prompt's text embedding, both with D channels, of a long text the mean over its pieces;
    without one it is the mean cosine of the feature with the language model's own input embeddings of the text around
    the image. Without a text all t are equal, and nothing is recovered.

    Options:
        keep: the most it may keep, as a share of an image's tokens in (0, 1]; 1 leaves the count to the image.
        tokens: the same as a number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        merged: how many tokens each centre takes.
        text_weight: of t against the cosine of keys where centres take.
    """

    merged: int = 32
    text_weight: float = 50.0

    name = "recoverable"
    ragged: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    encodes_text: ClassVar[bool] = True
    paper = (
        "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information",
        "Chen et al.",
        2024,
        "2409.01179",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.merged >= 0, self, "merged", "0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 2,)

    def choose(self, view: PrefixView) -> Kept:
        seen = view.tower
        features, attention = at_least_float32(view.features[0]), at_least_float32(seen.importance[0])
        pair = compared(view)
        relevance = mean_cosine(pair.unit, pair.texts)[0] / math.sqrt(pair.unit.shape[2])
        kept, rest = kept_and_rest(attention, relevance, view.count)
        centres, left = _split(attention, rest, _centres(attention[rest], len(kept), view.count))
        keys = unit_rows(seen.keys)[0]
        places, values = [kept], [features[kept]]
        for centre in centres:
            likeness = keys[left] @ keys[centre] + self.text_weight * relevance[left]
            near = likeness.sort(descending=True, stable=True).indices[: self.merged]
            taken = left[near]
            places.append(centre.unsqueeze(0))
            values.append((features[centre] + _sum(features, attention, taken)).unsqueeze(0))
            left = left[torch.ones_like(left, dtype=torch.bool).index_fill(0, near, False)]
        if len(left) and len(kept) + len(centres) < view.count:
            places.append(left[-1:])
            values.append(_sum(features, attention, left).unsqueeze(0))
        order = torch.cat(places).argsort()
        found = torch.cat(values)[order].to(view.features.dtype)
        return Kept(torch.cat(places)[order].unsqueeze(0), found.unsqueeze(0))


def kept_and_rest(attention: Tensor, relevance: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The tokens that stay as they are, and the others, both int64: steps 1 and 2 (Chen et al., 2024).

    Args:
        attention: (N) v.
        relevance: (N) t.
        most: how many may stay.
    """
    everything = torch.arange(len(attention), device=attention.device)
    number = min(most, int(outliers(attention, NEIGHBOURS).sum()))
    seen, rest = _split(attention, everything, number)
    number = min(most - len(seen), int(outliers(relevance[rest], NEIGHBOURS).sum()))
    recovered, rest = _split(relevance, rest, number)
    return torch.cat([seen, recovered]), rest


def _centres(attention: Tensor, kept: int, most: int) -> int:
    """How many of the rest, whose attention is given, are centres beside ``kept`` tokens."""
    if not len(attention):
        return 0
    number = kept * int(outliers(attention, NEIGHBOURS_OF_CENTRES).sum()) // len(attention)
    return min(number, most - kept, len(attention))


def _split(score: Tensor, places: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The ``number`` of the places with the highest score, from high to low, and the others, ascending."""
    order = score[places].sort(descending=True, stable=True).indices
    return places[order[:number]], places[order[number:]].sort().values


def _sum(features: Tensor, attention: Tensor, places: Tensor) -> Tensor:
    """(C) the features at these places, weighted by attention and summed."""
    return attention[places].to(features.dtype) @ features[places]
