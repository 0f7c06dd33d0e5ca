"""What GTP reads: graphs over tokens as (B, M, M) matrices, and what each token pays and receives."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.attention.signals import Attended, attention_rows
from tokensieve.ops.attention import row_blocks
from tokensieve.ops.matching import similarity
from tokensieve.ops.rows import named


def grid_neighbours(position: Tensor, columns: int) -> Tensor:
    """Which tokens touch on the grid, corners included: (B, M, M) bool, False on the diagonal.

    Args:
        position: (B, M) int64, each token's cell, counted row by row.
        columns: cells in a row.
    """
    row, column = position // columns, position % columns
    down = (row.unsqueeze(2) - row.unsqueeze(1)).abs()
    across = (column.unsqueeze(2) - column.unsqueeze(1)).abs()
    return torch.maximum(down, across) == 1


def most_similar(features: Tensor, count: int) -> Tensor:
    """Which tokens are among the ``count`` most alike of one another, by cosine: (B, M, M) bool, symmetric.

    Of equally alike tokens the lower index counts as more so; False on the diagonal.
    """
    chosen = named_by_each(features, count)
    return chosen | chosen.transpose(1, 2)


def named_by_each(features: Tensor, count: int) -> Tensor:
    """Which ``count`` tokens are most alike to each, by cosine: (B, M, M) bool, a row for each; itself is none."""
    length = features.shape[1]
    alike = similarity(features.detach(), features.detach())
    itself = torch.eye(length, dtype=torch.bool, device=alike.device)
    nearest = alike.masked_fill(itself, -torch.inf).sort(dim=2, descending=True, stable=True).indices[:, :, :count]
    return (named(nearest.flatten(0, 1), length).view(alike.shape) > 0) & ~itself


def normalised(adjacency: Tensor, dtype: torch.dtype) -> Tensor:
    """D^-½ G D^-½ of a graph (B, M, M) bool, in ``dtype``; rows of tokens without neighbours are zero."""
    degree = adjacency.sum(dim=2).clamp(min=1).to(dtype).rsqrt()
    return adjacency.to(dtype) * degree.unsqueeze(2) * degree.unsqueeze(1)


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
