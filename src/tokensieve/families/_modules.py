"""Modules that need no call: plain norms, which an operator may run in their place, and modules that do nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from tokensieve.errors import RefusedError
from tokensieve.ops.norm import Norm

COLLECTING = "transformers.utils.output_capturing"
TIMMS = "timm.layers.norm.LayerNorm"  # by name: families are listed without timm


def listened(module: nn.Module, but: str | None = None) -> bool:
    """Whether hooks wait for a call of ``module``, accelerate's among them, which take the place of its forward.

    Args:
        module: the module.
        but: leave out forward hooks that come from the Python module of this name.
    """
    behind: object = module._forward_hooks
    if but is not None:
        behind = any(getattr(hook, "__module__", None) != but for hook in module._forward_hooks.values())
    return bool(
        behind
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def refuse_listeners(module: nn.Module) -> None:
    """Refuse hooks on a module whose parts a reduced model runs without a call of it.

    Raises:
        RefusedError: somebody waits for a call of ``module``; what transformers puts there to collect outputs may.
    """
    if listened(module, COLLECTING):
        raise RefusedError(
            f"hooks wait for a call of a {type(module).__name__}, whose layers a model with reduced tokens runs one by "
            "one: put them on the layers inside or on the block, or ts.remove(model) first"
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
