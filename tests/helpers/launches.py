"""What an operator would launch on CUDA, without a GPU: recorded from tensors without data, and compiled for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tokensieve.ops import cuda

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]


@contextmanager
def anywhere() -> Iterator[None]:
    """Let the kernels take tensors of any device: for Triton's interpreter, and for tensors without data."""
    with mock.patch.object(cuda, "_on_gpu", lambda tensor: True), mock.patch.object(cuda, "available", lambda: True):
        yield


def recorded(kernel: Callable[..., Any], *arguments: Any) -> list[Launch]:
    """(kernel, grid, arguments, constants) of everything that ``kernel`` launches; nothing runs."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def run(launched: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **constants: Any) -> None:
        found.append((launched, grid, args, constants))

    with anywhere(), mock.patch.object(JITFunction, "run", run), torch.no_grad():
        assert kernel(*arguments) is not NotImplemented
    return found


def compiled(launch: Launch, capability: int) -> Any:
    """The launch compiled as Triton would on a GPU of ``capability``, with the arguments specialised as it does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, _, arguments, constants = launch
    options = {key: constants[key] for key in ("num_warps", "num_stages", "enable_fp_fusion") if key in constants}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | {
        key: value for key, value in constants.items() if key not in options
    }
    signature: dict[str, str] = {}
    constant: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and free):
            signature[parameter.name] = "constexpr"
            constant[(place,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and free:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(kernel, signature, constant, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
