"""The library of CPU kernels in C++: declared operator by operator, loaded as one, when the first of them is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from tokensieve.errors import TokensieveWarning
from tokensieve.ops.cpu.build import library_path
from tokensieve.utils.compiling import constant

P = ParamSpec("P")
R = TypeVar("R")
LIBRARY = torch.library.Library("tokensieve", "FRAGMENT")
SERVED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int64})
PLAIN = frozenset({Tensor, torch.nn.Parameter})


def compiled(schema: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare the kernel ``torch.ops.tokensieve.NAME`` of the library, whose C++ function has the name NAME.

    Args:
        schema: "NAME(arguments) -> answer", as torch writes it; C++ takes it from here.

    The decorated function says what the kernel answers with, in shapes and dtypes, so that a compiler can put it into
    its graph. What is returned in its place calls the kernel, which needs the library to be ``available``.
    """

    def declare(shapes: Callable[P, R]) -> Callable[P, R]:
        name = schema.partition("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, shapes, "Meta")
        kernel: Callable[P, R] = getattr(torch.ops.tokensieve, name).default
        return kernel

    return declare


def places(like: Tensor, *shape: int) -> Tensor:
    """The int64 tensor of ``shape`` that a kernel answers with, without its values."""
    return like.new_empty(shape, dtype=torch.int64)


@constant
def available() -> bool:
    """Whether the kernels are built and load here; says once, as a warning, when they do not."""
    return _loaded()


@cache
def _loaded() -> bool:
    path = library_path()
    if not path.exists():
        reason = "are not built"
    else:
        try:
            torch.ops.load_library(str(path))
            return True
        except OSError as error:
            reason = f"do not load ({error})"
    warnings.warn(
        f"tokensieve's CPU kernels {reason}: the plain torch operators run instead, with the same answers, slower; "
        "build them with `python -m tokensieve.ops.cpu` (needs a C++ compiler and the package ninja)",
        TokensieveWarning,
        stacklevel=5,
    )
    return False


def serves(*tensors: Tensor | None) -> bool:
    """Whether kernels may run on these tensors: plain ones on the CPU, float32 or half, no gradient wanted."""
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or not tensor.is_cpu or (grad and tensor.requires_grad):
            return False
        if tensor.dtype not in SERVED or not (tensor.is_contiguous() or tensor.stride(-1) == 1):
            return False
    return bool(available())
