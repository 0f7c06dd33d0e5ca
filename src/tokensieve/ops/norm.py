"""LayerNorm as numbers, so that an operator that writes rows can normalise them on its way."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn.modules import module as hooks


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


def norm_of(module: nn.Module | None) -> Norm | None:
    """What ``module`` does, where it is a plain LayerNorm over the channels that nobody listens to; else None."""
    if not isinstance(module, nn.LayerNorm) or type(module) not in (nn.LayerNorm, LayerNorm):
        return None
    listens = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if listens or hooks._global_forward_hooks or hooks._global_forward_pre_hooks or len(module.normalized_shape) != 1:
        return None
    weight: Tensor | None = module.weight
    return None if weight is None else Norm(weight, module.bias, module.eps)
