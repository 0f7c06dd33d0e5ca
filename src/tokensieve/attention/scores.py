"""What tokens are scored by beyond a row or a column of the attention map; nothing here stores the map."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.attention.signals import Attended, attention_rows, cls_row, received
from tokensieve.ops.attention import row_blocks
from tokensieve.ops.matching import similarity
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


def diagonal_and_columns(attended: Attended, block: int = 64) -> tuple[Tensor, Tensor]:
    """What each token pays to itself and what it receives in sum: two (B, H, L), in float32 or better.

    Streamed over blocks of ``block`` query rows; the map is not stored.
    """
    length = attended.keys.shape[2]
    own, total = [], attended.keys.new_zeros((), dtype=torch.float32)
    for rows in row_blocks(length, block):
        attention = attention_rows(attended, rows)
        # Not ``Tensor.diagonal``, which OpenVINO cannot convert.
        itself = torch.arange(rows.start, rows.stop, device=attention.device)[:, None].expand(*attention.shape[:3], 1)
        own.append(attention.gather(3, itself).squeeze(3))
        total = total + attention.sum(dim=2)
    return torch.cat(own, dim=2), total


def energy(features: Tensor, margin: float) -> Tensor:
    """How redundant each token is: mean_j ELU(cos_ij − margin) (Tran et al. 2024, arXiv 2405.16148), (B, M)."""
    return torch.nn.functional.elu(similarity(features, features) - margin).mean(dim=2)


def inverse_samples(score: Tensor, levels: int) -> Tensor:
    """Inverse transform sampling on a fixed grid (Fayyaz et al. 2021, arXiv 2111.15667): which tokens are drawn.

    Args:
        score: (B, M), not negative; -inf counts as zero. Equal scores keep their order.
        levels: K; level i = 1 … K is (2i − 1) / 2K and draws the first token, by rising score, whose summed share of
            the scores reaches it.

    Returns:
        (B, M) bool, at least one True in a row.
    """
    score = score.detach().clamp(min=0)
    rising, order = score.sort(dim=1, stable=True)
    summed = rising.cumsum(dim=1)
    grid = (torch.arange(levels, device=score.device, dtype=score.dtype) + 0.5) / levels
    # Compared with the levels of the whole sum and not divided by it: what it is does not depend on any padding.
    place = torch.searchsorted(summed, grid * summed[:, -1:]).clamp(max=score.shape[1] - 1)
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order.gather(1, place), True)


def head_weighted(attended: Attended, class_token: bool, voters: Tensor | None = None) -> Tensor:
    """Class attention with heads weighted by how long their output is (Liu et al. 2022, arXiv 2209.13802): (B, L).

    With O = A·V the outputs of the heads, a token's score is Σ_h A[h, cls, j] · ‖O[h, j]‖ / Σ_g ‖O[g, j]‖.

    Args:
        attended: what the attention was computed from, with its outputs.
        class_token: whether token 0 is a class token; attention received takes the place of its row where not.
        voters: (B, L) bool, the query rows that count in attention received, or None for all.
    """
    assert attended.outputs is not None
    length: Tensor = torch.linalg.vector_norm(at_least_float32(attended.outputs), dim=3)
    share = length / length.sum(dim=1, keepdim=True).clamp(min=torch.finfo(length.dtype).tiny)
    attention = attention_rows(attended, slice(0, 1)).squeeze(2) if class_token else received(attended, voters)
    return (attention * share).sum(dim=1)
