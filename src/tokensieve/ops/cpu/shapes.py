"""What the compiled kernels answer with, in shapes and dtypes, so that a compiler can put them into its graph."""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None, class_row: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, dim = queries.shape
    row = queries.new_empty(batch, keys.shape[2] if class_row else 0, dtype=torch.float32)
    return queries.new_empty(batch, rows, heads, dim).transpose(1, 2), row


def class_attention(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return keys.new_empty(keys.shape[0], keys.shape[2], dtype=torch.float32)


def column_sums(queries: Tensor, keys: Tensor, *others: object) -> Tensor:
    return keys.new_empty(keys.shape[:3], dtype=torch.float32)


def split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    batch, length = score.shape
    return _places(score, batch, count), _places(score, batch, length - count)


def size_bias(size: Tensor, prefix: int) -> Tensor:
    return size.new_empty(size.shape[0], 1, 1, prefix + size.shape[1], dtype=torch.float32)


def mean_rows(features: Tensor, unit: bool) -> Tensor:
    batch, _, length, dim = features.shape
    return features.new_empty(batch, length, dim, dtype=torch.float32)


def match_halves(metric: Tensor, remove: int, first: int) -> Triple:
    batch, _, length, _ = metric.shape
    return _places(metric, batch, length - remove), _places(metric, batch, remove), _places(metric, batch, remove)


def split_fused(score: Tensor, count: int) -> Triple:
    batch, length = score.shape
    rest = length - count
    return _places(score, batch, count), _places(score, batch, rest), _places(score, batch, rest)


def pair_and_cluster(
    x: Tensor, prefix: int, score: Tensor, attentive: int, pairs: int, clusters: int, rounds: int
) -> Triple:
    batch, length = score.shape
    left = attentive - pairs + clusters
    return _places(score, batch, left), _places(score, batch, length - left), _places(score, batch, length - left)


def match_pairs(features: Tensor, score: Tensor, pairs: int, rounds: int) -> Triple:
    batch, length, _ = features.shape
    return _places(score, batch, length - pairs), _places(score, batch, pairs), _places(score, batch, pairs)


def density_peaks(features: Tensor, clusters: int, neighbours: int) -> Triple:
    batch, length, _ = features.shape
    rest = length - clusters
    return _places(features, batch, clusters), _places(features, batch, rest), _places(features, batch, rest)


def move_tokens(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, keep: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels = x.shape
    present, left = rep.shape[1], keep.shape[1]
    return (
        x.new_empty(batch, length - present + left, channels),
        _places(x, batch, group.shape[1]),
        _places(x, batch, left),
        x.new_empty(batch, left, dtype=torch.float32),
        _places(x, batch, present),
        x.new_empty(batch, 1, 1, length - present + left, dtype=torch.float32),
    )


def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor:
    batch, _, channels = x.shape
    return x.new_empty(batch, index.shape[1] + (prefix if with_prefix else 0), channels)


def agglomerate(distances: Tensor, clusters: int, linkage: int) -> Tensor:
    return _places(distances, *distances.shape[:2])


def distances_between(similarities: Tensor) -> Tensor:
    return torch.empty_like(similarities)


def window_products(x: Tensor, centres: Tensor, rows: int, columns: int, height: int, width: int, reach: int) -> Tensor:
    return x.new_empty(x.shape[0], rows * columns, (2 * reach + 1) ** 2)


def window_sums(
    weights: Tensor, values: Tensor, rows: int, columns: int, height: int, width: int, reach: int
) -> Tensor:
    return values.new_empty(values.shape[0], height * width, values.shape[2])


def _places(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


KERNELS = (
    attend,
    class_attention,
    column_sums,
    split_top,
    size_bias,
    mean_rows,
    match_halves,
    split_fused,
    pair_and_cluster,
    match_pairs,
    density_peaks,
    move_tokens,
    put_back,
    agglomerate,
    distances_between,
    window_products,
    window_sums,
)


def register() -> None:
    """Tell torch the shapes. The library of kernels must be loaded."""
    for kernel in KERNELS:
        torch.library.register_fake(f"tokensieve::{kernel.__name__}", kernel)
