"""Which norm modules are a plain LayerNorm, that an operator may run in their place."""

from __future__ import annotations

from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from tokensieve.ops.norm import Norm


def norm_of(module: nn.Module | None) -> Norm | None:
    """What ``module`` does, where it is a plain LayerNorm over the channels that nobody listens to; else None."""
    if not isinstance(module, nn.LayerNorm) or type(module) not in (nn.LayerNorm, LayerNorm):
        return None
    listens = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if listens or hooks._global_forward_hooks or hooks._global_forward_pre_hooks or len(module.normalized_shape) != 1:
        return None
    weight: Tensor | None = module.weight
    return None if weight is None else Norm(weight, module.bias, module.eps)
