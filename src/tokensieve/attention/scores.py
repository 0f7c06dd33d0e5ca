"""What tokens are scored by beyond a row or a column of the attention map; nothing here stores the map."""

from __future__ import annotations

from torch import Tensor

from tokensieve.attention.signals import Attended, cls_row, received
from tokensieve.ops.rows import at_least_float32


def value_norms(attended: Attended) -> Tensor:
    """(B, L): the length of each token's value vector over all heads, in float32 or better."""
    return at_least_float32(attended.values).square().sum(dim=(1, 3)).sqrt()


def value_weighted(attended: Attended, class_token: bool, voters: Tensor | None = None) -> Tensor:
    """Class attention times the length of the value vectors (Fayyaz et al. 2022, arXiv 2111.15667): (B, L).

    Args:
        attended: what the attention was computed from.
        class_token: whether token 0 is a class token; attention received takes the place of its row where not.
        voters: (B, L) bool, the query rows that count in attention received, or None for all.
    """
    attention = cls_row(attended) if class_token else received(attended, voters).mean(dim=1)
    return attention * value_norms(attended)
