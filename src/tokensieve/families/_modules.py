"""Modules that need no call: plain norms, which an operator may run in their place, and modules that do nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from tokensieve.ops.norm import Norm

TIMMS = "timm.layers.norm.LayerNorm"  # by name: families are listed without timm


def listened(module: nn.Module) -> bool:
    """Whether hooks wait for a call of ``module``, accelerate's among them, which take the place of its forward."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(
        own
        or "forward" in vars(module)
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def through(x: Tensor, *modules: nn.Module) -> Tensor:
    """``x`` behind ``modules``, one after the other, without a call of modules that hand it on unchanged."""
    for module in modules:
        if type(module) is not nn.Identity or listened(module):
            x = module(x)
    return x


def norm_of(module: nn.Module | None) -> Norm | None:
    """What ``module`` does, where it is a plain LayerNorm over the channels without hooks; else None."""
    if not isinstance(module, nn.LayerNorm) or not _plain(type(module)):
        return None
    if listened(module) or len(module.normalized_shape) != 1:
        return None
    weight: Tensor | None = module.weight
    return None if weight is None else Norm(weight, module.bias, module.eps)


def _plain(kind: type[nn.LayerNorm]) -> bool:
    return kind is nn.LayerNorm or f"{kind.__module__}.{kind.__qualname__}" == TIMMS
