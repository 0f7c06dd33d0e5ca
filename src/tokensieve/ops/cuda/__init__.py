"""CUDA kernels in Triton, one function for each fused operator: arguments and answers as the reference of that name.

Each returns NotImplemented where it cannot serve: under autograd, for float64, off CUDA, for more tokens than fit, or
where Triton cannot run. None waits for the GPU and every shape follows from the shapes given, so that all of them can
be captured in a CUDA graph.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokensieve.errors import TokensieveWarning
from tokensieve.ops.fused import followed

if TYPE_CHECKING:
    from tokensieve.attention.selector import Selector
    from tokensieve.attention.signals import Attended
    from tokensieve.ops.norm import Norm
    from tokensieve.tokens.decision import Assignment
    from tokensieve.tokens.move import Moved

SERVED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int64})
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
PLAIN = frozenset({Tensor, torch.nn.Parameter})
MOST_TOKENS = 8192  # that one program can rank
MOST_CHANNELS = 4096
MOST_HEAD_CHANNELS = 128
MOST_HIDDEN = 64  # of a selector
LEAST_CAPABILITY = (8, 0)  # bfloat16 products


@cache
def available() -> bool:
    """Whether Triton runs here; says once, as a warning, why not."""
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is not None:
        reason = "are for NVIDIA GPUs"
    elif capability < LEAST_CAPABILITY:
        reason = f"need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    else:
        try:
            select = import_module("tokensieve.ops.cuda.select")
            select.split_top(torch.zeros(1, 2, device="cuda"), 1)
            return True
        except ImportError:
            reason = "need the package triton, which is not installed"
        except Exception as error:  # whatever keeps Triton from compiling: no C compiler, no headers, another driver
            reason = f"cannot be compiled ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    warnings.warn(
        f"tokensieve's CUDA kernels {reason}: the plain torch operators run instead, with the same answers, slower",
        TokensieveWarning,
        stacklevel=4,
    )
    return False


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run on these tensors: plain ones on one GPU, float32 or half, no gradient wanted."""
    grad = torch.is_grad_enabled()
    device = None
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or not _on_gpu(tensor) or (grad and tensor.requires_grad):
            return False
        if tensor.dtype not in SERVED or (device is not None and tensor.device != device):
            return False
        device = tensor.device
    return not (followed() or _traced()) and available()


def _traced() -> bool:
    """Whether operators are being recorded or faked: a launch of Triton would leave no trace."""
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))


def _dense(*tensors: Tensor | None) -> bool:
    """Whether the last dimension of all lies without gaps."""
    return all(tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in tensors)


def _attention_serves(attended: Attended, *others: Tensor | None) -> bool:
    queries, keys = attended.queries, attended.keys
    same = queries.shape == keys.shape and queries.dtype == keys.dtype and keys.dtype in FLOATS
    small = keys.shape[3] <= MOST_HEAD_CHANNELS and isinstance(attended.scale, float)
    return same and small and _dense(queries, keys) and _serves(queries, keys, attended.bias, *others)


def _flat_bias(attended: Attended) -> Tensor | None:
    if attended.bias is None:
        return None
    batch, _, length, _ = attended.keys.shape
    return attended.bias.expand(batch, 1, 1, length)[:, 0, 0]


def class_attention(attended: Attended) -> Tensor | Any:
    """See ``tokensieve.attention.class_attention``."""
    if not _attention_serves(attended):
        return NotImplemented
    from tokensieve.ops.cuda import scores

    return scores.class_attention(attended.queries, attended.keys, attended.scale, _flat_bias(attended))


def column_sums(attended: Attended, voters: Tensor | None, block: int, stride: int) -> Tensor | Any:
    """See ``tokensieve.attention.column_sums``."""
    if not _attention_serves(attended):
        return NotImplemented
    from tokensieve.ops.cuda import columns

    votes = None if voters is None else voters.contiguous()
    return columns.column_sums(attended.queries, attended.keys, attended.scale, _flat_bias(attended), votes, stride)


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
    small = selector.expand.out_channels <= MOST_HIDDEN
    if not plain or not small or not _attention_serves(attended, *parameters):
        return NotImplemented
    from tokensieve.ops.cuda import selected

    expand, expand_bias, reduce, reduce_bias = (
        p.flatten(1) if p.dim() == 3 else p for p in parameters if p is not None
    )
    return selected.selected_columns(
        attended.queries,
        attended.keys,
        attended.scale if selector.scaled else 1.0,
        _flat_bias(attended),
        (expand, expand_bias, reduce, reduce_bias),
        stride,
        sum_of == "log_probabilities",
    )


def split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor] | Any:
    """See ``tokensieve.ops.rows.split_top``."""
    if score.dtype not in FLOATS or score.shape[1] > MOST_TOKENS or not _serves(score):
        return NotImplemented
    from tokensieve.ops.cuda import select

    return select.split_top(score, count)


def head_mean(features: Tensor) -> Tensor | Any:
    """See ``tokensieve.ops.rows.head_mean``."""
    if features.dtype not in FLOATS or features.shape[3] > MOST_CHANNELS or not _dense(features):
        return NotImplemented
    if not _serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import rows

    return rows.head_mean(features)


def unit_rows(features: Tensor) -> Tensor | Any:
    """See ``tokensieve.ops.matching.unit_rows``."""
    if features.dtype not in FLOATS or features.shape[2] > MOST_CHANNELS or not _dense(features):
        return NotImplemented
    if not _serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import rows

    return rows.unit_rows(features)


def bipartite_matching(metric: Tensor, remove: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.matching.bipartite_matching``."""
    fits = 2 <= metric.shape[1] <= 2 * MOST_TOKENS
    if metric.dtype not in FLOATS or not fits or not _dense(metric) or not _serves(metric):
        return NotImplemented
    from tokensieve.ops.cuda import matching

    return matching.bipartite_matching(metric, remove, first)


def match_pairs(features: Tensor, score: Tensor, pairs: int, rounds: int) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.matching.match_pairs``."""
    fits = 0 < features.shape[1] <= MOST_TOKENS
    if features.dtype not in FLOATS or score.dtype not in FLOATS or not fits or not _serves(features, score):
        return NotImplemented
    from tokensieve.ops.cuda import pairs as pairing
    from tokensieve.ops.matching import unit_rows as to_unit_rows  # the door: also where no kernel takes them

    with torch.autocast("cuda", enabled=False):
        unit = to_unit_rows(features)
        similarities = unit @ unit.transpose(1, 2)
    return pairing.lead_pairs(similarities, score, pairs, rounds)


def density_peaks(
    features: Tensor, clusters: int, neighbours: int | None = None
) -> tuple[Tensor, Tensor, Tensor] | Any:
    """See ``tokensieve.ops.density.density_peaks``."""
    if features.dtype not in FLOATS or features.shape[1] > MOST_TOKENS or not _serves(features):
        return NotImplemented
    from tokensieve.ops.cuda import density

    return density.density_peaks(features, clusters, neighbours)


def move_tokens(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, assignment: Assignment, norm: Norm | None = None
) -> Moved | Any:
    """See ``tokensieve.tokens.move.move_tokens``."""
    keep, weight = assignment.keep, assignment.weight
    nobody = keep[:, :0]
    moved = nobody if assignment.moved is None else assignment.moved
    onto = nobody if assignment.onto is None else assignment.onto
    dropped = nobody if assignment.dropped is None else assignment.dropped
    named = keep.shape[1] + moved.shape[1] + dropped.shape[1]
    if assignment.alive is not None or named != rep.shape[1] or x.dtype not in FLOATS or not _dense(x):
        return NotImplemented
    if not _serves(x, group, rep, size, weight, keep, moved, onto, dropped):
        return NotImplemented
    from tokensieve.ops.cuda import moving

    parts = tuple(part if _dense(part) else part.contiguous() for part in (keep, moved, onto, dropped))
    weight = weight if moved.shape[1] else None
    fits = norm is None or (
        x.shape[2] <= moving.MOST_CHANNELS
        and not torch.is_autocast_enabled("cuda")
        and _serves(norm.weight, norm.bias)
        and norm.weight.dtype in FLOATS
    )
    answer = moving.move_tokens(x, group, rep, size, parts, weight, assignment.reduce == "mean", norm if fits else None)
    return answer if fits or norm is None else answer._replace(normed=norm(answer.x))


def put_back(x: Tensor, index: Tensor, other: Tensor | None, prefix: int, with_prefix: bool) -> Tensor | Any:
    """See ``tokensieve.tokens.move.put_back``."""
    if x.dtype not in FLOATS or not _dense(x, other) or not _serves(x, index, other):
        return NotImplemented
    if other is not None and other.dtype != x.dtype:
        return NotImplemented
    from tokensieve.ops.cuda import moving

    return moving.put_back(x, index, other, prefix, with_prefix)
