"""ToSA's selector: from this layer's attention logits to the next layer's attention map, and its column sums."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tokensieve.attention.signals import Attended, logits, row_blocks
from tokensieve.ops.fused import fused
from tokensieve.ops.rows import at_least_float32


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
        batch, heads, count, length = rows.shape
        rows = rows.to(self.expand.weight.dtype)
        if self.expand.kernel_size == (1,):
            # A convolution of width 1 is a matrix product over the heads; written as one it is four times faster.
            flat = rows.reshape(batch, heads, count * length)
            out = _mix(torch.relu_(_mix(flat, self.expand)), self.reduce).view(batch, heads, count, length)
        else:
            flat = rows.transpose(1, 2).reshape(batch * count, heads, length)
            out = self.reduce(torch.relu_(self.expand(flat))).view(batch, count, heads, length).transpose(1, 2)
        return at_least_float32(out)

    def columns(
        self, attended: Attended, block: int, stride: int, sum_of: Literal["probabilities", "log_probabilities"]
    ) -> Tensor:
        """Column sums of the predicted map per head, (B, H, L), streamed over blocks of ``block`` query rows.

        Nothing of size H·L² is held. ``stride`` reads every stride-th row.
        """
        return selected_columns(self, attended, block, stride, sum_of)


@fused
def selected_columns(
    selector: Selector,
    attended: Attended,
    block: int,
    stride: int,
    sum_of: Literal["probabilities", "log_probabilities"],
) -> Tensor:
    """Column sums (B, H, L) of the map that ``selector`` predicts; see ``Selector.columns``."""
    total: Tensor | None = None
    for rows in row_blocks(attended.keys.shape[2], block, stride):
        predicted = selector.predict(logits(attended, rows, selector.scaled))
        if sum_of == "probabilities":
            part = predicted.softmax(dim=selector.axis).sum(dim=2)
        else:
            part = predicted.log_softmax(dim=selector.axis).sum(dim=2)
        total = part if total is None else total + part
    assert total is not None
    return total


def _mix(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """``conv``, of width 1, on (B, channels, positions)."""
    assert conv.bias is not None
    return torch.baddbmm(conv.bias.unsqueeze(1), conv.weight[:, :, 0].expand(x.shape[0], -1, -1), x)
