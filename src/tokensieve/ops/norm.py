"""LayerNorm as numbers, so that an operator that writes rows can normalise them on its way."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """A LayerNorm over the channels.

    Attributes:
        weight: (C,).
        bias: (C,) or None.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) normalised."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
