"""Relative positions as channels of queries and keys, so that the fused attention adds their bias without a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 8  # kernels want head dimensions that are a multiple of it


def folded(
    query: Tensor, key: Tensor, value: Tensor, scale: float, biases: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, L, D + …) whose attention with a scale of 1 has the ``biases`` added.

    A bias that depends on a query and the place of a key, b(q, place), is a product: b(q, ·) beside the query, and a
    one at the key's place beside the key. Values get as many zeros, because kernels want all three of one width.

    Args:
        query, key, value: (B, H, L, D).
        scale: of the logits without biases.
        biases: pairs of the bias of each query for every place (B, H, L, S), and the place of each key (B, L) or (L,).
    """
    wide = [query * scale, *(bias.to(query.dtype) for bias, _ in biases)]
    ones = [F.one_hot(places, bias.shape[3]).to(key.dtype) for bias, places in biases]
    placed = [one.expand(len(key), *one.shape[-2:]).unsqueeze(1).expand(-1, key.shape[1], -1, -1) for one in ones]
    query, key = torch.cat(wide, dim=3), torch.cat([key, *placed], dim=3)
    width = -(-query.shape[3] // ALIGNED) * ALIGNED
    return tuple(F.pad(part, (0, width - part.shape[3])) for part in (query, key, value))  # type: ignore[return-value]


def along_axis(query: Tensor, table: Tensor, places: Tensor, side: int) -> Tensor:
    """(B, H, L, S) the bias q · r(i − j) of each query at ``places`` i (B, L) for every place j of an axis.

    The relative positions of MViTv2 (Li et al. 2022, arXiv 2112.01526, equation 4).

    Args:
        query: (B, H, L, D).
        table: (2 S' − 1, D) the vector r of each distance, from −(S' − 1) on; stretched where S' is not ``side``.
        places: (B, L) int64.
        side: S, places of the axis.
    """
    distances = 2 * side - 1
    if len(table) != distances:
        table = F.interpolate(table.t().unsqueeze(0), size=distances, mode="linear").squeeze(0).t()
    products = query @ table.t()
    index = places.unsqueeze(2) - torch.arange(side, device=places.device) + side - 1
    return products.gather(3, index.unsqueeze(1).expand(-1, query.shape[1], -1, -1))


def of_places(bias: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (B, H, L, S) of a ``bias`` (1, H, S, S) between all places of a window that are of tokens at ``places``
    (B, L), and these."""
    return bias[0].transpose(0, 1)[places].transpose(1, 2), places
