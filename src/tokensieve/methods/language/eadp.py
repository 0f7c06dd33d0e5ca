"""EADP (arXiv 2607.02484): features that cover what the text is about, without the words that are about everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.methods._config import require
from tokensieve.methods.language._greedy import cosines_between, covering
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.methods.language._text import compared, cosines, mean_cosine, min_max
from tokensieve.ops.rows import unit_rows


@dataclass(frozen=True, kw_only=True)
class EADP(PrefixMethod):
    """Keep the features that cover the relevant part of the image best: entropy-aware dense pruning.

    Relevance is ½ cos(whole text) + ½ cos(single tokens of it); of those tokens only the half counts whose softmax over
    the features has the lowest entropy, each by how far that lies below the highest possible. The sum is brought to
    [0, 1], smoothed over 3 × 3 places of the grid by a Gaussian, and raised to a power. What is kept is the greedy
    maximum of the facility location Σ_j relevance_j · max over the kept i of cos(i, j), cosines of features. Ties go to
    the lower index.

    With a ``text_encoder``, as the authors have it, relevance is of the projected last patches of the tower to the
    state of the text's last token and to the projected states of its single ones, the tokens that begin and end a text
    left out; the whole of a long text is the mean over its pieces. Without one it is of the features to the language
    model's own input embeddings around the image, and the whole is the mean of their cosines. Our choice are that, the
    weights by entropy and ``sigma``. Without a text all features are equally relevant.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        power: of the relevance.
        sigma: width of the Gaussian in places of the grid; at a border only the places that are there count, and frames
            are smoothed one by one. 0 leaves it out; else it is refused where the grid is not known.
    """

    power: float = 10.0
    sigma: float = 1.0

    reads_text: ClassVar[bool] = True
    encodes_text: ClassVar[bool] = True
    paper = (
        "Combating Textual Noise and Redundancy: Entropy-Aware Dense Visual Token Pruning",
        "Wang et al.",
        2026,
        "2607.02484",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power >= 0, self, "power", "0 or more")
        require(self.sigma >= 0, self, "sigma", "0 or more")

    def choose(self, view: PrefixView) -> Kept:
        pair = compared(view)
        relevance = min_max((mean_cosine(pair.unit, pair.texts) + dense(cosines(pair.unit, pair.words))) / 2)
        if self.sigma:
            relevance = smoothed(relevance, self._grid(view), self.sigma)
        alike = cosines_between(unit_rows(view.features))
        alike *= relevance.pow(self.power).to(alike.dtype).unsqueeze(2)
        return Kept(in_order(covering(alike, view.count)))

    def _grid(self, view: PrefixView) -> tuple[int, ...]:
        features = view.features.shape[1]
        if view.grid is None or len(view.grid) not in (2, 3) or math.prod(view.grid) != features:
            raise RefusedError(
                f"{self.name} smooths relevance over the grid of an image, (rows, columns) or (frames, rows, columns), "
                f"and the {features} features here have {view.grid}: give sigma=0 to leave the smoothing out"
            )
        return view.grid


def dense(words: Sequence[Tensor]) -> Tensor:
    """(B, N) mean cosine of the words that are about few features; zeros where there are no words.

    Args:
        words: (B) the cosines (T, N) of each text embedding with each feature.

    Of the T the ⌈T / 2⌉ of lowest entropy count, weighted by log N − entropy of their softmax over the features.
    """
    return torch.stack([_weighed(image) if len(image) else image.sum(dim=0) for image in words])


def _weighed(cosine: Tensor) -> Tensor:
    # log N − entropy, written so that nothing cancels: cosines of one word often differ by thousandths only.
    centred = cosine - cosine.mean(dim=1, keepdim=True)
    above = centred - centred.expm1().mean(dim=1, keepdim=True).log1p()
    focus = (cosine.softmax(dim=1) * above).sum(dim=1).clamp(min=0)
    half = focus.sort(descending=True, stable=True).indices[: (len(cosine) + 1) // 2]
    total = focus[half].sum()
    return torch.where(total > 0, focus[half] / total, 1 / len(half)) @ cosine[half]


def smoothed(score: Tensor, grid: tuple[int, ...], sigma: float) -> Tensor:
    """(B, N) scores averaged over 3 × 3 places of the grid by a Gaussian; at a border over the places that are there.

    Args:
        score: (B, N) along ``grid``, the last axis fastest.
        grid: (rows, columns), or (frames, rows, columns) whose frames are smoothed one by one.
        sigma: width in places, above 0.
    """
    side = math.exp(-0.5 / sigma**2)
    plane = score.reshape(-1, *grid[-2:])
    return _along(_along(plane, 1, side), 2, side).reshape(score.shape)


def _along(plane: Tensor, axis: int, side: float) -> Tensor:
    def total(values: Tensor) -> Tensor:
        length, border = values.shape[axis], torch.zeros_like(values.narrow(axis, 0, 1))
        before = torch.cat([border, values.narrow(axis, 0, length - 1)], dim=axis)
        after = torch.cat([values.narrow(axis, 1, length - 1), border], dim=axis)
        return values + side * (before + after)

    return total(plane) / total(torch.ones_like(plane))
