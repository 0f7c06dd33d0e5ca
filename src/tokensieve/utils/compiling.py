"""What torch.compile is told about a function, without loading the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """``function`` with a result that torch.compile takes as it is, as by ``torch.compiler.assume_constant_result``.

    That one loads the compiler to set this mark, for as long as torch itself takes, in every program that compiles
    nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
