"""A bias for each pair of tokens, as of relative positions: that of the tokens present, out of that of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.ops.moving import behind_prefix


@dataclass(frozen=True)
class Pairs:
    """Which pairs of the whole sequence are present.

    Attributes:
        positions: (B, M) int64, the patch whose place each patch token has; None while all have their own.
        prefix: P, the prefix tokens in front.
    """

    positions: Tensor | None
    prefix: int

    def present(self, bias: Tensor) -> Tensor:
        """(B, H, P + M, P + M) out of the ``bias`` (B or 1, H, P + N, P + N) of all tokens."""
        if self.positions is None:
            return bias
        places = behind_prefix(self.positions, self.prefix)
        rows, columns = places[:, None, :, None], places[:, None, None, :]
        images = torch.arange(len(places), device=places.device) if bias.shape[0] > 1 else places.new_zeros(1)
        heads = torch.arange(bias.shape[1], device=places.device)
        return bias[images[:, None, None, None], heads[None, :, None, None], rows, columns]
