"""torch's ``nn.MultiheadAttention`` through the fused kernel, where its queries, keys and values can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.families._modules import refuse_listeners


def multihead(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(B, L, C), what ``attention`` answers where ``x`` (B, L, C) attends to itself."""
    refuse_listeners(attention)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    heads = F.linear(x, weight, bias).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    queries, keys, values = heads.unbind(0)
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    return attention.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def refusal(attention: nn.Module) -> str | None:
    """Why ``multihead`` does not run ``attention``, or None."""
    if not isinstance(attention, nn.MultiheadAttention):
        return None
    if not attention.batch_first:
        return "its nn.MultiheadAttention takes sequences before images: build it with batch_first=True"
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        return "its nn.MultiheadAttention has keys of another width, or some of its own beside those of the tokens"
    return None


@contextmanager
def as_written() -> Iterator[None]:
    """While it runs, torch's layers compute in Python, as they do with gradients, and not in one call of their own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
