"""The fused attention that answers a block's call, with a bias per key where one is wanted, and that bias."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from tokensieve.ops import cpu
from tokensieve.ops._operator import operator
from tokensieve.ops.attention import flat_bias
from tokensieve.ops.rows import at_least_float32
from tokensieve.utils.compiling import constant

# A removed token's share of attention while training: exact zero would have no gradient. Nothing that an answer in
# float32 shows, and its logarithm, -32, is exact in half precision.
MASK_EPSILON = math.exp(-32)


@operator
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None = None,
    class_row: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention (B, H, L, D), as torch computes it; ``bias`` (B, 1, 1, L) is added to the logits of every key.

    On processors that multiply pairs of bfloat16, torch's kernel does not use them; ours of the same name does, and
    has the class token's row, mean over heads, (B, L), for nothing: that is what comes second when ``class_row``. None
    where it would cost as much as ``class_attention``.
    """
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale), None
    return biased_attention(query, key, value, bias, scale=scale), None


@cpu.compiled(
    "attend(Tensor queries, Tensor keys, Tensor values, float scale, Tensor? bias, bool class_row) -> (Tensor, Tensor)"
)
def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None, class_row: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, dim = queries.shape
    row = queries.new_empty(batch, keys.shape[2] if class_row else 0, dtype=torch.float32)
    return queries.new_empty(batch, rows, heads, dim).transpose(1, 2), row


@attend.on_cpu
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float | None = None,
    class_row: bool = False,
) -> tuple[Tensor, Tensor | None] | Any:
    alike = query.dtype == key.dtype == value.dtype and query.shape[:2] == key.shape[:2] == value.shape[:2]
    if not alike or value.shape[2:] != key.shape[2:] or query.dtype != torch.bfloat16:
        return NotImplemented
    if not cpu.serves(query, key, value, bias) or not multiplies_pairs():
        return NotImplemented
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, row = _attend(query, key, value, scale, None if bias is None else flat_bias(bias, key), class_row)
    return out, row if class_row else None


@constant
def multiplies_pairs() -> bool:
    """Whether the processor multiplies pairs of bfloat16, and there is a kernel to do it."""
    return _multiplies_pairs()


@cache
def _multiplies_pairs() -> bool:
    return cpu.available() and bool(torch.ops.tokensieve.can_attend.default())


cpu.LIBRARY.define("can_attend() -> bool")


def attends_faster(x: Tensor) -> bool:
    """Whether a kernel of ours would compute the attention of a block on ``x`` (B, L, C) faster than torch's."""
    served = x.dtype == torch.bfloat16 and x.is_cpu and multiplies_pairs()
    return served and not is_exporting()


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Fused attention with a bias (B, 1, 1, L) on the logits of every key.

    An additive mask stays on the fused kernel of a CPU. On CUDA it would lose flash attention, so where no gradient is
    wanted the bias rides in one more head dimension there (see ``fold_bias``).
    """
    if query.is_cuda and not query.requires_grad and not torch.is_grad_enabled():
        query, key, padded, scale = fold_bias(query, key, value, bias, scale)
        return F.scaled_dot_product_attention(query, key, padded, dropout_p=dropout_p, scale=scale)[
            ..., : value.shape[-1]
        ]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout_p, scale=scale
    )


def fold_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Carry a key bias in one more head dimension: q' = [q, 1], k' = [k, bias / scale], padded to a multiple of 8.

    Exact up to rounding, and needs no mask. Padding's minus infinity is cut to −10⁴, whose softmax is still zero.
    """
    dim = query.shape[-1]
    scale = dim**-0.5 if scale is None else scale
    width = -(-(dim + 1) // 8) * 8 - dim
    extra = bias.clamp(min=-1e4).transpose(-1, -2).to(key.dtype) / scale
    ones = torch.ones_like(query[..., :1])
    query = torch.cat([query, F.pad(ones, (0, width - 1))], dim=-1)
    key = torch.cat([key, F.pad(extra.expand(*key.shape[:-1], 1), (0, width - 1))], dim=-1)
    return query, key, F.pad(value, (0, width)), scale


@operator
def key_bias(prefix: int, size: Tensor | None, alive: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The bias (B, 1, 1, P + M) that log-size attention, padding and training masks put on the logits of each key.

    Args:
        prefix: P, the prefix tokens, which get none.
        size: (B, M) how many patches each key stands for (log-size attention), or None.
        alive: (B, M) bool, False for padding, which no query may see, or None.
        mask: (B, M) in [0, 1], the training-time keep mask, or None.
    """
    bias: Tensor | None = None
    if size is not None:
        bias = at_least_float32(size).clamp(min=torch.finfo(torch.float32).tiny).log()
    if mask is not None:
        # Clamped below what a removed token has: at its bound a clamp lets no gradient through.
        masked = at_least_float32(mask).add(MASK_EPSILON).clamp(min=MASK_EPSILON / 2).log()
        bias = masked if bias is None else bias + masked
    if alive is not None:
        bias = torch.zeros(alive.shape, device=alive.device) if bias is None else bias
        bias = bias.masked_fill(~alive, -math.inf)
    if bias is None:
        return None
    return F.pad(bias, (prefix, 0)).unsqueeze(1).unsqueeze(1)


@cpu.compiled("size_bias(Tensor size, int prefix) -> Tensor")
def _size_bias(size: Tensor, prefix: int) -> Tensor:
    return size.new_empty(size.shape[0], 1, 1, prefix + size.shape[1], dtype=torch.float32)


@key_bias.on_cpu
def _(prefix: int, size: Tensor | None, alive: Tensor | None, mask: Tensor | None) -> Tensor | Any | None:
    if size is None or alive is not None or mask is not None or size.dtype != torch.float32 or not cpu.serves(size):
        return NotImplemented
    return _size_bias(size, prefix)
