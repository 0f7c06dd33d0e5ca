"""ToSA's selector: from this layer's attention logits to the next layer's attention map, and its column sums."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.signals import Attended
from tokensieve.ops import cpu
from tokensieve.ops._operator import operator
from tokensieve.ops.attention import (
    compiled_column_sums,
    cuda_serves,
    flat_bias,
    logits,
    row_blocks,
    shared_bias,
)
from tokensieve.ops.rows import at_least_float32

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # expand (E, H, W), its bias (E,), reduce (H, E, W), its bias (H,)
MOST_HEADS = 64  # that the CPU kernel takes
MOST_HIDDEN = 64  # hidden channels that the CUDA kernel takes


class Selector(nn.Module):
    """Predicts the next layer's attention map from blocks of rows of this layer's logits (arXiv 2406.08816, section 3).

    Two 1-D convolutions over the heads as channels with a ReLU between them and a log-softmax at the end. A fresh
    selector passes the logits through unchanged, so that its prediction is this layer's own attention map; the other
    hidden channels start as noise that the second convolution ignores.

    Args:
        heads: H, attention heads.
        expansion: hidden channels per head.
        kernel: width of the convolutions along the keys, odd; 1 is independent of resolution.
        normalize: what the log-softmax runs over: "keys" or "heads".
        scaled: whether the logits carry the factor 1 / sqrt(D).
        class_row: whether only the class token's row of the map is wanted, and fitted.
    """

    fitted: Tensor

    def __init__(
        self,
        heads: int,
        expansion: int = 4,
        kernel: int = 1,
        normalize: Literal["keys", "heads"] = "keys",
        scaled: bool = True,
        class_row: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.scaled = scaled
        self.class_row = class_row
        self.noticed = False
        self.expand = nn.Conv1d(heads, heads * expansion, kernel, padding=kernel // 2)
        self.reduce = nn.Conv1d(heads * expansion, heads, kernel, padding=kernel // 2)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._start_as_identity(heads, kernel // 2)

    @torch.no_grad()
    def _start_as_identity(self, heads: int, centre: int) -> None:
        # relu(x) - relu(-x) = x, in the first 2H hidden channels.
        for conv in (self.expand, self.reduce):
            conv.weight[: 2 * heads].zero_()
            assert conv.bias is not None
            conv.bias.zero_()
        self.reduce.weight.zero_()
        eye = torch.eye(heads)
        self.expand.weight[:heads, :, centre] = eye
        self.expand.weight[heads : 2 * heads, :, centre] = -eye
        self.reduce.weight[:, :heads, centre] = eye
        self.reduce.weight[:, heads : 2 * heads, centre] = -eye

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (B, H, R, L) of R query rows to the predicted log-probabilities (B, H, R, L) of the next layer."""
        return self.predict(rows).log_softmax(dim=self.axis)

    @property
    def axis(self) -> int:
        """The dimension of (B, H, R, L) that the softmax runs over."""
        return -1 if self.normalize == "keys" else 1

    def predict(self, rows: Tensor) -> Tensor:
        """Logits (B, H, R, L) of R query rows to those the next layer is predicted to have, in float32 or better."""
        return predicted(rows, self.weights)

    @property
    def weights(self) -> Weights:
        """Of the two convolutions, with their biases."""
        assert self.expand.bias is not None and self.reduce.bias is not None
        return self.expand.weight, self.expand.bias, self.reduce.weight, self.reduce.bias

    def columns(
        self, attended: Attended, block: int, stride: int, sum_of: Literal["probabilities", "log_probabilities"]
    ) -> Tensor:
        """Column sums of the predicted map per head, (B, H, L), streamed over blocks of ``block`` query rows.

        Nothing of size H·L² is held. ``stride`` reads every stride-th row.
        """
        scale = attended.scale if self.scaled else None
        given = (attended.queries, attended.keys, scale, attended.bias)
        return selected_columns(*given, self.weights, self.axis, block, stride, sum_of)


@operator
def selected_columns(
    queries: Tensor,
    keys: Tensor,
    scale: float | None,
    bias: Tensor | None,
    weights: Weights,
    axis: int,
    block: int,
    stride: int,
    sum_of: Literal["probabilities", "log_probabilities"],
) -> Tensor:
    """Column sums (B, H, L) of the map that a selector predicts; see ``Selector.columns``.

    Args:
        queries, keys: (B, H, L, D).
        scale: factor of the logits, or None for one.
        bias: (B, 1, 1, L) added to the logits of every key, or None.
        weights: of the selector.
        axis: the dimension of (B, H, R, L) that its softmax runs over, -1 or 1.
        block: query rows held at a time.
        stride: distance between the rows read.
        sum_of: what is summed.
    """
    total: Tensor | None = None
    for rows in row_blocks(keys.shape[2], block, stride):
        guess = predicted(logits(queries[:, :, rows], keys, scale, bias), weights)
        likely = guess.softmax(dim=axis) if sum_of == "probabilities" else guess.log_softmax(dim=axis)
        part = likely.sum(dim=2)
        total = part if total is None else total + part
    assert total is not None
    return total


def predicted(rows: Tensor, weights: Weights) -> Tensor:
    """``Selector.predict`` with these weights."""
    expand, expand_bias, reduce, reduce_bias = weights
    batch, heads, count, length = rows.shape
    rows = rows.to(expand.dtype)
    if expand.shape[2] == 1:
        # A convolution of width 1 is a matrix product over the heads; written as one it is four times faster.
        flat = rows.reshape(batch, heads, count * length)
        out = _mix(torch.relu_(_mix(flat, expand, expand_bias)), reduce, reduce_bias).view(batch, heads, count, length)
    else:
        flat = rows.transpose(1, 2).reshape(batch * count, heads, length)
        inner = torch.relu_(F.conv1d(flat, expand, expand_bias, padding=expand.shape[2] // 2))
        out = F.conv1d(inner, reduce, reduce_bias, padding=reduce.shape[2] // 2)
        out = out.view(batch, count, heads, length).transpose(1, 2)
    return at_least_float32(out)


def _mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of width 1 on (B, channels, positions)."""
    return torch.baddbmm(bias.unsqueeze(1), weight[:, :, 0].expand(x.shape[0], -1, -1), x)


@selected_columns.on_cpu
def _(
    queries: Tensor,
    keys: Tensor,
    scale: float | None,
    bias: Tensor | None,
    weights: Weights,
    axis: int,
    block: int,
    stride: int,
    sum_of: Literal["probabilities", "log_probabilities"],
) -> Tensor | Any:
    plain = weights[0].shape[2] == 1 and axis == -1
    if not plain or keys.shape[1] > MOST_HEADS or not cpu.serves(queries, keys, bias, *weights):
        return NotImplemented
    factor = 1.0 if scale is None else scale
    flat = None if bias is None else flat_bias(bias, keys)
    return compiled_column_sums(queries, keys, factor, flat, None, stride, *weights, sum_of == "log_probabilities")


@selected_columns.on_cuda
def _(
    queries: Tensor,
    keys: Tensor,
    scale: float | None,
    bias: Tensor | None,
    weights: Weights,
    axis: int,
    block: int,
    stride: int,
    sum_of: Literal["probabilities", "log_probabilities"],
) -> Tensor | Any:
    plain = weights[0].shape[2] == 1 and axis == -1
    factor = 1.0 if scale is None else scale
    if not plain or weights[0].shape[0] > MOST_HIDDEN or not cuda_serves(queries, keys, factor, bias, *weights):
        return NotImplemented
    from tokensieve.ops.cuda import selected

    expand, expand_bias, reduce, reduce_bias = weights
    flat = (expand.flatten(1), expand_bias, reduce.flatten(1), reduce_bias)
    shared = shared_bias(bias, keys)
    return selected.selected_columns(queries, keys, factor, shared, flat, stride, sum_of == "log_probabilities")
