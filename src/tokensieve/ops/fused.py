"""The door to the fused operators: a plain-torch function, and kernels that give the same answer in one pass.

The plain function defines the answer. It is what runs under autograd, in float64, while a model is compiled or
exported (where the compiler fuses it), and wherever no kernel is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def fused(reference: Callable[P, R]) -> Callable[P, R]:
    """Let kernels of the same name stand in for ``reference``, which stays reachable as ``__wrapped__``.

    A kernel takes the same arguments and returns NotImplemented for those it cannot serve.
    """

    @wraps(reference)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            for kernel in _kernels(reference.__name__):
                answer = kernel(*args, **kwargs)
                if answer is not NotImplemented:
                    return answer  # type: ignore[no-any-return]
        return reference(*args, **kwargs)

    return door


@cache
def _kernels(name: str) -> tuple[Callable[..., Any], ...]:
    from tokensieve.ops import gpu, native  # here, because kernels use the types that the references are written with

    return tuple(getattr(module, name) for module in (native, gpu) if hasattr(module, name))
