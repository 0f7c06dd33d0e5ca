"""Reading attention without giving up the fused kernel: the tap, the key bias, and the probes.

``Tap`` watches one block's attention. It sees queries, keys and values as the kernel does, after their norms and rotary
embedding, adds a bias per key where one is wanted, and hands the call on to the fused kernel. The probes then compute
just what a method asked for, in memory that grows with the number of tokens and never with its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode

from tokensieve.errors import RefusedError
from tokensieve.ops import native
from tokensieve.ops.fused import fused
from tokensieve.ops.rows import at_least_float32

if TYPE_CHECKING:
    from tokensieve.packing import Packing

# A removed token's share of attention while training: exact zero would have no gradient. Nothing that an answer in
# float32 shows, and its logarithm, -32, is exact in half precision.
MASK_EPSILON = math.exp(-32)


@dataclass
class Attended:
    """What one block's attention was computed from.

    Attributes:
        queries, keys, values: (B, H, L, D), L = prefix + patch tokens. Parallel attentions lie side by side in H.
        scale: factor of the logits, 1 / sqrt(D) unless the model says otherwise.
        bias: (B, 1, 1, L) added to the logits of every key, or None.
        class_row: (B, L) what ``class_attention`` gives, where the kernel of the attention had it on its way; or None.
        outputs: (B, H, L, D) what every head gave, A·V, or None where nobody asked for it.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    bias: Tensor | None = None
    class_row: Tensor | None = None
    outputs: Tensor | None = None


class Tap(TorchFunctionMode):
    """Records the attention calls made inside ``with tap:`` and adds ``bias`` (B, 1, 1, L) to their logits.

    With ``own`` a kernel of ours may compute the attention where it is the faster one (see ``attend``); without, the
    call that the model makes is the call that runs, bit for bit. Of the signals ``wanted``, "outputs" are recorded too,
    and "cls_row" is taken from our kernel where that runs.

    With a ``packing`` the model's calls are on the tokens of all images in one row; ``attended`` shows them padded.
    ``sized`` then says whether ``bias`` holds more than which slots are empty.

    Write ``tap = Tap()`` and then ``with tap:``; TorchDynamo does not trace ``with Tap() as tap``. In ``with tap:``
    torch hands every call over, which costs more than a kernel; an attention that only passes its mask on to the fused
    kernel may be given ``tap.mask`` instead, where ``tap.by_mask``.
    """

    attention_alone = True  # whether no other call than the attention's is of interest

    def __init__(self, bias: Tensor | None = None, own: bool = False, wanted: Collection[str] = frozenset()) -> None:
        super().__init__()
        self.bias = bias
        self.own = own
        self.wanted = wanted
        self.packing: Packing | None = None
        self.sized = False
        self.class_row: Tensor | None = None
        self.calls: list[tuple[Tensor, Tensor, Tensor, float | None]] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.answer(*args, **kwargs)

    @property
    def by_mask(self) -> bool:
        """Whether an attention may be watched by its mask.

        Not under TorchDynamo, which does not trace that, nor inside modes of others, which would see the mask first.
        """
        return self.attention_alone and not torch.compiler.is_dynamo_compiling() and not _len_torch_function_stack()

    @property
    def mask(self) -> Any:
        """What to hand to an attention as its mask, in place of None, for this tap to answer the call."""
        return Listening(self)

    def answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> Tensor:
        """The attention of one call, recorded; arguments as of ``F.scaled_dot_product_attention``."""
        if is_causal or attn_mask is not None:
            raise RefusedError(
                "token reduction got a causal or masked attention call, which it cannot follow: "
                "call the model without attn_mask and is_causal, or ts.remove(model) first"
            )
        self.calls.append((query, key, value, scale))
        if self.packing is not None:
            kernel = partial(self._kernel, dropout_p=dropout_p, scale=scale, **others)
            output = self.packing.attend(kernel, (query, key, value), self.bias if self.sized else None)
            self.class_row = None  # that of the last image
        else:
            output = self._kernel(query, key, value, self.bias, dropout_p=dropout_p, scale=scale, **others)
        if "outputs" in self.wanted:
            self.outputs.append(output)
        return output

    def _kernel(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        dropout_p: float,
        scale: float | None,
        **others: Any,
    ) -> Tensor:
        if self.own and dropout_p == 0.0 and not others:
            output, self.class_row = attend(query, key, value, bias, scale, "cls_row" in self.wanted)
            return output
        if bias is None:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, scale=scale, **others)
        return biased_attention(query, key, value, bias, scale=scale, dropout_p=dropout_p)

    def attended(self) -> Attended:
        """What the calls were computed from; several parallel attentions are laid side by side as heads."""
        if not self.calls:
            raise RefusedError(
                "the block's attention never called the fused kernel (F.scaled_dot_product_attention): build the model "
                "with fused attention on, so that its signals can be read: timm.layers.set_fused_attn(True), or in "
                "transformers model.set_attn_implementation('sdpa')"
            )
        queries, keys, values, scale = self.calls[0]
        if len(self.calls) > 1:
            queries, keys, values = (
                torch.cat(parts, dim=1) for parts in list(zip(*((q, k, v) for q, k, v, _ in self.calls), strict=True))
            )
        scale = queries.shape[-1] ** -0.5 if scale is None else scale
        outputs = torch.cat(self.outputs, dim=1) if self.outputs else None
        if self.packing is not None:
            queries, keys, values = (self.packing.unpack_heads(part) for part in (queries, keys, values))
            outputs = None if outputs is None else self.packing.unpack_heads(outputs)
        class_row = self.class_row if len(self.calls) == 1 else None
        return Attended(queries, keys, values, scale, self.bias, class_row, outputs)


class Listening:
    """Stands where a call of the fused attention has its mask, so that torch asks ``tap`` for the answer."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        others = dict(kwargs or {})
        listening = others.pop("attn_mask", None)
        if func is not F.scaled_dot_product_attention or not isinstance(listening, cls):
            return NotImplemented
        return listening.tap.answer(*args, **others)


@fused
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


def attends_faster(x: Tensor) -> bool:
    """Whether a kernel of ours would compute the attention of a block on ``x`` (B, L, C) faster than torch's."""
    return native.attends(x) and not torch.compiler.is_exporting()


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


@fused
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


def first_keys(attended: Attended, length: int) -> Attended:
    """What an attention over the first ``length`` tokens alone would be computed from."""
    bias = None if attended.bias is None else attended.bias[..., :length].contiguous()
    queries, keys, values = (part[:, :, :length] for part in (attended.queries, attended.keys, attended.values))
    outputs = None if attended.outputs is None else attended.outputs[:, :, :length]
    return Attended(queries, keys, values, attended.scale, bias, outputs=outputs)


def logits(attended: Attended, rows: slice = slice(None), scaled: bool = True) -> Tensor:
    """Attention logits of some query rows, (B, H, R, L), in float32 or better, biased as the kernel saw them.

    ``scaled=False`` leaves the factor 1 / sqrt(D) out.
    """
    queries = attended.queries[:, :, rows]
    queries = queries * attended.scale if scaled else queries
    product = at_least_float32(queries @ attended.keys.transpose(-1, -2))
    return product if attended.bias is None else product + attended.bias


def attention_rows(attended: Attended, rows: slice) -> Tensor:
    """Softmax attention of some query rows, (B, H, R, L), in float32 or better."""
    return logits(attended, rows).softmax(dim=-1)


def row_blocks(length: int, block: int, stride: int = 1) -> list[slice]:
    """Slices that walk the query rows ``0, stride, 2·stride, …`` in blocks of ``block`` rows."""
    step = block * stride
    return [slice(start, min(start + step, length), stride) for start in range(0, length, step)]


def cls_row(attended: Attended) -> Tensor:
    """``class_attention``, from the attention's own kernel where that had it on its way."""
    return class_attention(attended) if attended.class_row is None else attended.class_row


@fused
def class_attention(attended: Attended) -> Tensor:
    """The class token's row of the attention map, mean over heads: (B, L), in float32 or better."""
    return attention_rows(attended, slice(0, 1)).mean(dim=1).squeeze(1)


@fused
def column_sums(attended: Attended, voters: Tensor | None, block: int, stride: int) -> Tensor:
    """Sums over every stride-th query row of each column of the attention map, (B, H, L); see ``received``."""
    total: Tensor | None = None
    for rows in row_blocks(attended.keys.shape[2], block, stride):
        attention = attention_rows(attended, rows)
        if voters is None:
            columns = attention.sum(dim=2)
        else:
            columns = (voters[:, None, None, rows].to(attention.dtype) @ attention).squeeze(2)
        total = columns if total is None else total + columns
    assert total is not None
    return total


def voters_of(alive: Tensor | None, prefix: int) -> Tensor | None:
    """(B, P + M) bool, the query rows that count: the prefix and the slots that hold a token; None where all do."""
    return None if alive is None else F.pad(alive, (prefix, 0), value=True)


def received(attended: Attended, voters: Tensor | None = None, block: int = 64, stride: int = 1) -> Tensor:
    """Attention received: the mean of each key's column of the attention map, (B, H, L).

    Streamed over blocks of query rows: exact with ``stride=1``, in O(L·block) memory; a larger stride reads every
    stride-th row and is an estimate.

    Args:
        attended: what the attention was computed from.
        voters: (B, L) bool, the query rows that count, or None for all (padding must not vote).
        block: query rows held at a time.
        stride: distance between the rows read.
    """
    length = attended.keys.shape[2]
    count: Tensor | int = len(range(0, length, stride))
    if voters is not None:
        count = voters[:, ::stride].sum(dim=1).view(-1, 1, 1)
    return column_sums(attended, voters, block, stride) / count


def spread_shares(attended: Attended, shares: Tensor, block: int = 64) -> Tensor:
    """Label shares behind an attention and its residual, (A·r + r) / 2 with A the mean of the heads' maps.

    Streamed over blocks of query rows: O(H·block·L) memory (TL-Align, arXiv 2210.06455).

    Args:
        attended: what the attention was computed from.
        shares: (B, L, K) in float32 or better.
        block: query rows held at a time.
    """
    with torch.autocast(shares.device.type, enabled=False):
        taken = [
            attention_rows(attended, rows).mean(dim=1).to(shares.dtype) @ shares
            for rows in row_blocks(shares.shape[1], block)
        ]
    return (torch.cat(taken, dim=1) + shares) / 2
