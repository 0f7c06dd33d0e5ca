"""CPU kernels in C++, one function for each fused operator: same arguments and answers as the reference of that name.

Each returns NotImplemented where it cannot serve: under autograd, for float64, off the CPU, or when not built.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokensieve.errors import TokensieveWarning
from tokensieve.ops.cpu import shapes
from tokensieve.ops.cpu.build import library_path
from tokensieve.ops.fused import followed
from tokensieve.tokens.move import Moved

if TYPE_CHECKING:
    from tokensieve.attention.selector import Selector
    from tokensieve.attention.signals import Attended
    from tokensieve.ops.norm import Norm
    from tokensieve.ops.windows import Windows
    from tokensieve.tokens.decision import Assignment

SERVED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int64})
PLAIN = frozenset({Tensor, torch.nn.Parameter})
MOST_HEADS = 64
STAYS = -2  # as the new place of a token that does not move after all


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the kernels are built and load here; says once, as a warning, when they do not."""
    return _loaded()


@cache
def _loaded() -> bool:
    path = library_path()
    if not path.exists():
        reason = "are not built"
    else:
        try:
            torch.ops.load_library(str(path))
            shapes.register()
            return True
        except OSError as error:
            reason = f"do not load ({error})"
    warnings.warn(
        f"tokensieve's CPU kernels {reason}: the plain torch operators run instead, with the same answers, slower; "
        "build them with `python -m tokensieve.ops.cpu` (needs a C++ compiler and the package ninja)",
        TokensieveWarning,
        stacklevel=5,
    )
    return False


def _serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run on these tensors: plain ones on the CPU, float32 or half, no gradient wanted."""
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or not tensor.is_cpu or (grad and tensor.requires_grad):
            return False
        if tensor.dtype not in SERVED or not (tensor.is_contiguous() or tensor.stride(-1) == 1):
            return False
    return bool(available())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _pairs() -> bool:
    return _multiplies_pairs()


@cache
def _multiplies_pairs() -> bool:
    return available() and bool(torch.ops.tokensieve.can_attend.default())


def attends(x: Tensor) -> bool:
    """Whether ``attend`` may serve the attention of a block that runs on ``x``."""
    return x.dtype == torch.bfloat16 and x.is_cpu and _pairs()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None = None,
    class_row: bool = False,
) -> tuple[Tensor, Tensor | None] | Any:
    """See ``tokensieve.attention.attend``."""
    alike = query.dtype == key.dtype == value.dtype and query.shape[:2] == key.shape[:2] == value.shape[:2]
    if not alike or value.shape[2:] != key.shape[2:] or query.dtype != torch.bfloat16:
        return NotImplemented
    if not _serves(query, key, value, bias) or not _pairs():
        return NotImplemented
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, row = torch.ops.tokensieve.attend.default(query, key, value, scale, _flat(bias, key), class_row)
    return out, row if class_row else None


def class_attention(attended: Attended) -> Tensor | Any:
    """See ``tokensieve.attention.class_attention``."""
    if not _serves(attended.queries, attended.keys, attended.bias):
        return NotImplemented
    return torch.ops.tokensieve.class_attention.default(
        attended.queries, attended.keys, attended.scale, _flat_bias(attended)
    )


def _flat_bias(attended: Attended) -> Tensor | None:
    return _flat(attended.bias, attended.keys)


def _flat(bias: Tensor | None, keys: Tensor) -> Tensor | None:
    if bias is None:
        return None
    batch, _, length, _ = keys.shape
    if bias.dtype == torch.float32 and bias.shape[0] == batch and bias.is_contiguous():
        return bias.view(batch, length)
    return bias.float().expand(batch, 1, 1, length).reshape(batch, length)


def column_sums(attended: Attended, voters: Tensor | None, block: int, stride: int) -> Tensor | Any:
    """See ``tokensieve.attention.column_sums``."""
    if not _serves(attended.queries, attended.keys, attended.bias):
        return NotImplemented
    votes = None if voters is None else voters.float().contiguous()
    return torch.ops.tokensieve.column_sums.default(
        attended.queries, attended.keys, attended.scale, _flat_bias(attended), votes, stride, *[None] * 4, False
    )


def selected_columns(
    selector: Selector,
    attended: Attended,
    block: int,
    stride: int,
    sum_of: Literal["probabilities", "log_probabilities"],
) -> Tensor | Any:
    """See ``tokensieve.attention.selector.selected_columns``."""
    parameters = (selector.expand.weight, selector.expand.bias, selector.reduce.weight, selector.reduce.bias)
    plain = selector.expand.kernel_size == (1,) and selector.normalize == "keys"
    if not plain or attended.keys.shape[1] > MOST_HEADS:
        return NotImplemented
    if not _serves(attended.queries, attended.keys, attended.bias, *parameters):
        return NotImplemented
    return torch.ops.tokensieve.column_sums.default(
        attended.queries,
        attended.keys,
        attended.scale if selector.scaled else 1.0,
        _flat_bias(attended),
        None,
        stride,
        *parameters,
        sum_of == "log_probabilities",
    )


def split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor] | Any:
    """See ``tokensieve.ops.rows.split_top``."""
    if not score.is_floating_point() or not _serves(score):
        return NotImplemented
    return torch.ops.tokensieve.split_top.default(score.float(), count)


def split_fused(score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.rows.split_fused``."""
    if not score.is_floating_point() or not _serves(score):
        return NotImplemented
    return torch.ops.tokensieve.split_fused.default(score.float(), count)


def pair_and_cluster(
    x: Tensor, prefix: int, score: Tensor, attentive: int, pairs: int, clusters: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.methods._attentive.pair_and_cluster``."""
    if not x.is_contiguous() or not _serves(x, score) or not 0 < clusters <= score.shape[1] - attentive:
        return NotImplemented
    return torch.ops.tokensieve.pair_and_cluster.default(x, prefix, score.float(), attentive, pairs, clusters, rounds)


def key_bias(prefix: int, size: Tensor | None, alive: Tensor | None, mask: Tensor | None) -> Tensor | Any | None:
    """See ``tokensieve.attention.key_bias``."""
    if size is None or alive is not None or mask is not None or size.dtype != torch.float32 or not _serves(size):
        return NotImplemented
    return torch.ops.tokensieve.size_bias.default(size, prefix)


def head_mean(features: Tensor) -> Tensor | Any:
    """See ``tokensieve.ops.rows.head_mean``."""
    if not _serves(features):
        return NotImplemented
    return torch.ops.tokensieve.mean_rows.default(features, False)


def unit_rows(features: Tensor) -> Tensor | Any:
    """See ``tokensieve.ops.matching.unit_rows``."""
    if not _serves(features):
        return NotImplemented
    return torch.ops.tokensieve.mean_rows.default(features.unsqueeze(1), True)


def bipartite_matching(metric: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.matching.bipartite_matching``."""
    return match_halves(metric.unsqueeze(1), remove, first)


def match_halves(features: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.matching.match_halves``."""
    if not _serves(features):
        return NotImplemented
    return torch.ops.tokensieve.match_halves.default(features, remove, first)


def match_pairs(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.matching.match_pairs``."""
    if not _serves(features, score):
        return NotImplemented
    return torch.ops.tokensieve.match_pairs.default(features, score.float(), pairs, rounds)


def density_peaks(
    features: Tensor, clusters: int, neighbours: int | None = None
) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.density.density_peaks``."""
    if not _serves(features):
        return NotImplemented
    return torch.ops.tokensieve.density_peaks.default(features, clusters, neighbours or 0)


def takes_windows(x: Tensor) -> bool:
    """Whether ``window_products`` and ``window_sums`` serve patches like ``x``."""
    return x.dtype == torch.float32 and (torch.compiler.is_compiling() or not followed()) and _serves(x)


def window_products(x: Tensor, centres: Tensor, windows: Windows) -> Tensor | Any:
    """See ``tokensieve.ops.windows.window_products``."""
    if not takes_windows(x) or not takes_windows(centres):
        return NotImplemented
    return torch.ops.tokensieve.window_products.default(x.contiguous(), centres.contiguous(), *_sides(windows))


def window_sums(weights: Tensor, values: Tensor, windows: Windows) -> Tensor | Any:
    """See ``tokensieve.ops.windows.window_sums``."""
    if not takes_windows(weights) or not takes_windows(values):
        return NotImplemented
    return torch.ops.tokensieve.window_sums.default(weights.contiguous(), values.contiguous(), *_sides(windows))


def _sides(windows: Windows) -> tuple[int, int, int, int, int]:
    return windows.rows, windows.columns, windows.height, windows.width, windows.reach


def agglomerate(distances: Tensor, clusters: int, linkage: Literal["single", "complete", "average"]) -> Tensor | Any:
    """See ``tokensieve.methods._agglomerative.agglomerate``."""
    if distances.dtype != torch.float32 or not _serves(distances):
        return NotImplemented
    number = ("single", "complete", "average").index(linkage)
    return torch.ops.tokensieve.agglomerate.default(distances.contiguous(), clusters, number)


def distances_between(similarities: Tensor) -> Tensor | Any:
    """See ``tokensieve.methods._agglomerative.distances_between``."""
    if similarities.dtype != torch.float32 or not similarities.is_contiguous() or not _serves(similarities):
        return NotImplemented
    return torch.ops.tokensieve.distances_between.default(similarities)


def move_tokens(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, assignment: Assignment, norm: Norm | None = None
) -> Moved | Any:
    """See ``tokensieve.tokens.move.move_tokens``."""
    weight = assignment.weight
    if not x.is_contiguous() or not _serves(x, size, weight, group, rep):
        return NotImplemented
    moved, onto = _moves(assignment)
    merges = moved is not None and moved.shape[1] > 0
    out, groups, reps, sizes, slots, bias = torch.ops.tokensieve.move_tokens.default(
        x,
        group,
        rep,
        size,
        assignment.keep,
        moved if merges else None,
        onto if merges else None,
        weight if merges else None,
        assignment.reduce == "mean",
    )
    normed = None if norm is None else norm(out)
    if size is None and assignment.joining is None:
        return Moved(out, groups, reps, None, slots, normed)
    return Moved(out, groups, reps, sizes, slots, normed, bias)


def _moves(assignment: Assignment) -> tuple[Tensor | None, Tensor | None]:
    """Tokens (B, R) that move and the new ones they join, with the slots of an image that padding fills among them."""
    moved, onto, alive = assignment.moved, assignment.onto, assignment.alive
    if alive is None:
        return moved, onto
    padding = assignment.padding_onto
    places = torch.full_like(assignment.keep, -1) if padding is None else padding
    places = places.masked_fill(alive, STAYS)
    if moved is None or onto is None:
        return assignment.keep, places
    return torch.cat([moved, assignment.keep], dim=1), torch.cat([onto, places], dim=1)


def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor | Any:
    """See ``tokensieve.tokens.move.put_back``."""
    if not x.is_contiguous() or not _serves(x, other, index):
        return NotImplemented
    if other is not None and (other.dtype != x.dtype or other.stride(1) != other.shape[2]):
        return NotImplemented
    return torch.ops.tokensieve.put_back.default(x, index, other, prefix, with_prefix)
