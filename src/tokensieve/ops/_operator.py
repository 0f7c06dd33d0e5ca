"""What an operator is: a plain-torch function that defines the answer, and kernels that give the same one in one pass.

An operator takes tensors and numbers. Its file holds all of it: the plain body, then, where there are kernels, the
schema and the shapes of the compiled one (``ops.cpu.compiled``) and a function for each device that hands over the
arguments, or returns NotImplemented for those its kernel cannot serve.

The plain body is what runs under autograd, in float64, while a model is exported, and wherever no kernel is at hand. A
compiler puts the CPU kernels into its graph; on CUDA it fuses the plain body.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from torch._C import _is_tracing
from torch._C._functorch import maybe_current_level
from torch.compiler import is_dynamo_compiling, is_exporting

P = ParamSpec("P")
R = TypeVar("R")


class Operator(Protocol[P, R]):
    """A function with kernels.

    Attributes:
        __wrapped__: the plain body.
        cpu, cuda: what hands its arguments to a kernel there, or answers NotImplemented; None where there is none.
    """

    __name__: str
    __wrapped__: Callable[P, R]
    cpu: Callable[P, Any] | None
    cuda: Callable[P, Any] | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def on_cpu(self, kernel: Callable[P, Any]) -> Callable[P, Any]:
        """Let ``kernel`` answer on the CPU, and in the graphs of a compiler."""
        ...

    def on_cuda(self, kernel: Callable[P, Any]) -> Callable[P, Any]:
        """Let ``kernel`` answer on CUDA, outside such graphs."""
        ...


def operator(plain: Callable[P, R]) -> Operator[P, R]:
    """Make ``plain`` an operator; ``on_cpu`` and ``on_cuda`` of the answer give it kernels, as decorators."""
    cpu: Callable[P, Any] | None = None
    cuda: Callable[P, Any] | None = None

    @wraps(plain)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_dynamo_compiling():
            return _compiled(plain, cpu, *args, **kwargs)
        if maybe_current_level() is None and not _is_tracing():  # ``followed``, without a call
            if cpu is not None:
                answer = cpu(*args, **kwargs)
                if answer is not NotImplemented:
                    return answer  # type: ignore[no-any-return]
            if cuda is not None:
                answer = cuda(*args, **kwargs)
                if answer is not NotImplemented:
                    return answer  # type: ignore[no-any-return]
        return plain(*args, **kwargs)

    def on_cpu(kernel: Callable[P, Any]) -> Callable[P, Any]:
        nonlocal cpu
        cpu = this.cpu = kernel
        return kernel

    def on_cuda(kernel: Callable[P, Any]) -> Callable[P, Any]:
        nonlocal cuda
        cuda = this.cuda = kernel
        return kernel

    this = cast("Operator[P, R]", call)
    this.on_cpu, this.on_cuda = on_cpu, on_cuda  # type: ignore[method-assign]
    this.cpu = this.cuda = None
    return this


def followed() -> bool:
    """Whether a functorch transform or a trace follows the calls: a tensor is then not what its type says."""
    return maybe_current_level() is not None or _is_tracing()


def _compiled(plain: Callable[P, R], cpu: Callable[P, Any] | None, *args: P.args, **kwargs: P.kwargs) -> R:
    """What an operator does, in words that TorchDynamo traces."""
    if cpu is not None and not is_exporting():
        answer = cpu(*args, **kwargs)
        if answer is not NotImplemented:
            return answer  # type: ignore[no-any-return]
    return plain(*args, **kwargs)
