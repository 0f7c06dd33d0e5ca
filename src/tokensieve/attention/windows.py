"""Attention in windows: each token attends to those of its own, however the tokens lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.attention.packing import Rows


@dataclass(frozen=True)
class WindowRows(Rows):
    """Tokens in windows of any number of tokens.

    Attributes:
        windows: (B, L) int64, the number of each token's window; no two images share one.
    """

    windows: Tensor

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Let every window attend to itself; windows of as many tokens go through the kernel together."""
        batch, heads, length, _ = query.shape
        # All tokens of all images, window by window.
        numbers = self.windows.flatten()
        order = numbers.argsort(stable=True)
        counts = torch.unique_consecutive(numbers[order], return_counts=True)[1]
        starts = counts.cumsum(0) - counts
        rows = [part.transpose(1, 2).flatten(0, 1).index_select(0, order) for part in (query, key, value)]
        biases = None if bias is None else bias.expand(batch, 1, 1, length).flatten().index_select(0, order)
        out = value.new_empty(batch * length, heads, value.shape[3])
        # One call for each number of tokens that there is.
        for count in counts.unique().tolist():
            places = starts[counts == count].unsqueeze(1) + torch.arange(count, device=starts.device)
            parts = (row[places].transpose(1, 2) for row in rows)
            answer = kernel(*parts, None if biases is None else biases[places][:, None, None], **options)
            out[places] = answer.transpose(1, 2).to(out.dtype)
        whole = torch.empty_like(out).index_copy(0, order, out)
        return whole.view(batch, length, heads, -1).transpose(1, 2)
