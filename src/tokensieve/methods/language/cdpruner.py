"""CDPruner (arXiv 2506.10967): diversity that is conditioned on the text, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._greedy import determinantal
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.methods.language._text import compared, mean_cosine, min_max
from tokensieve.ops.rows import unit_rows

FLOOR = 1e-6  # added to a relevance in [0, 1]


@dataclass(frozen=True, kw_only=True)
class CDPruner(PrefixMethod):
    """Keep the most diverse features with regard to the text: the greedy mode of a determinantal point process.

    Its kernel is L = diag(r) · S · diag(r) with S the cosines of the features and r their relevance: the mean over the
    text around the image of −cos(image, text), as published with that sign, brought to [0, 1] plus 1e-6. With a
    ``text_encoder``, as the authors have it, these are the projected last patches of the tower and the text's
    embedding, of a long text the mean over those of its pieces; without one the features and the language model's own
    input embeddings. Without a text all features are equally relevant, and diversity alone decides. Ties go to the
    lower index.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        theta: θ in [0, 1), the weight of relevance against diversity: r becomes exp(θ / (2(1 − θ)) · r), so that 0 is
            diversity alone; default none, r itself.
    """

    theta: float | None = None

    reads_text: ClassVar[bool] = True
    encodes_text: ClassVar[bool] = True
    paper = (
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        "Zhang et al.",
        2025,
        "2506.10967",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.theta is None or 0 <= self.theta < 1, self, "theta", "in [0, 1), or none")

    def choose(self, view: PrefixView) -> Kept:
        pair = compared(view)
        relevance = min_max(-mean_cosine(pair.unit, pair.texts)) + FLOOR
        unit = unit_rows(view.features)
        return Kept(in_order(determinantal(unit, self._weight(relevance).to(unit.dtype), view.count)))

    def _weight(self, relevance: Tensor) -> Tensor:
        if self.theta is None:
            return relevance
        # A common factor changes nothing, and without it the exponential overflows for θ near 1.
        above = relevance - relevance.amax(dim=1, keepdim=True)
        return (self.theta / (2 * (1 - self.theta)) * above).exp()
