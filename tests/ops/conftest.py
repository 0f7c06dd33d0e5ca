"""The Triton kernels run here on a GPU, or without one in Triton's interpreter, which TRITON_INTERPRET=1 switches on.

The variable counts when a kernel is defined, so it must be set before Python starts: without a GPU
cuda/test_triton_without_gpu.py runs test_kernels.py and cuda/test_triton_kernels.py in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.helpers.kernels import INTERPRETED

if INTERPRETED:
    collect_ignore = ["test_operators.py", "test_ops.py", "test_orders.py"]
    collect_ignore += ["cuda/test_triton_without_gpu.py", "cuda/test_triton_cuda.py"]
elif not torch.cuda.is_available():
    collect_ignore = ["cuda/test_triton_kernels.py"]


@pytest.fixture(autouse=True)
def _kernels_take_these_tensors() -> Iterator[None]:
    """Kernels refuse tensors of a CPU; the interpreter wants them."""
    from tests.helpers.launches import anywhere

    with anywhere() if INTERPRETED else nullcontext():
        yield


if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def _widened(operand: TensorHandle) -> TensorHandle:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def _dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: Any) -> TensorHandle:
        return _product(builder, _widened(a), _widened(b), *others)

    # The interpreter keeps bfloat16 as bits, and its matrix product would multiply those.
    _product, InterpreterBuilder.create_dot = InterpreterBuilder.create_dot, _dot
