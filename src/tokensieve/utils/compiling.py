"""What torch.compile is told about a function, without loading the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """``function`` with a result that torch.compile takes as it is, as by ``torch.compiler.assume_constant_result``.

    That one loads the compiler to set this mark, for as long as torch itself takes, in every program that compiles
    nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace looks on, under which the sizes of tensors are tensors."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def number(size: int) -> int:
    """The size of a tensor as a number, also where torch.jit.trace makes a tensor of it."""
    return int(size) if is_jit_tracing() else size
