"""The door to the fused operators: a plain-torch function, and kernels that give the same answer in one pass.

The plain function defines the answer. It is what runs under autograd, in float64, while a model is exported, and
wherever no kernel is at hand. A compiler puts the CPU kernels into its graph; on CUDA it fuses the plain function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._C import _is_tracing
from torch._C._functorch import maybe_current_level

P = ParamSpec("P")
R = TypeVar("R")


def fused(reference: Callable[P, R]) -> Callable[P, R]:
    """Let kernels of the same name stand in for ``reference``, which stays reachable as ``__wrapped__``.

    A kernel takes the same arguments and returns NotImplemented for those it cannot serve.
    """

    @wraps(reference)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return _compiled(reference, *args, **kwargs)
        if not followed():
            for kernel in _kernels(name):
                answer = kernel(*args, **kwargs)
                if answer is not NotImplemented:
                    return answer  # type: ignore[no-any-return]
        return reference(*args, **kwargs)

    name = reference.__name__

    return door


def followed() -> bool:
    """Whether a functorch transform or a trace follows the calls: a tensor is then not what its type says."""
    return maybe_current_level() is not None or _is_tracing()


def _compiled(reference: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What ``door`` does, in words that TorchDynamo traces."""
    if not torch.compiler.is_exporting():
        from tokensieve.ops import cpu as native

        kernel = getattr(native, reference.__name__, None)
        if kernel is not None:
            answer = kernel(*args, **kwargs)
            if answer is not NotImplemented:
                return answer  # type: ignore[no-any-return]
    return reference(*args, **kwargs)


@cache
def _kernels(name: str) -> tuple[Callable[..., Any], ...]:
    from tokensieve.ops import cpu as native
    from tokensieve.ops import cuda as gpu  # here, because kernels use the types that the references are written with

    return tuple(getattr(module, name) for module in (native, gpu) if hasattr(module, name))
