"""CUDA kernels in Triton: whether they run here, and on which tensors; the files beside this one hold them.

None waits for the GPU and every shape follows from the shapes given, so that all of them can be captured in a CUDA
graph.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from tokensieve.errors import TokensieveWarning
from tokensieve.ops._operator import followed

SERVED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int64})
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
PLAIN = frozenset({Tensor, torch.nn.Parameter})
MOST_TOKENS = 8192  # that one program can rank
MOST_CHANNELS = 4096
LEAST_CAPABILITY = (8, 0)  # bfloat16 products


@cache
def available() -> bool:
    """Whether Triton runs here; says once, as a warning, why not."""
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is not None:
        reason = "are for NVIDIA GPUs"
    elif capability < LEAST_CAPABILITY:
        reason = f"need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    else:
        try:
            select = import_module("tokensieve.ops.cuda.select")
            select.split_top(torch.zeros(1, 2, device="cuda"), 1)
            return True
        except ImportError:
            reason = "need the package triton, which is not installed"
        except Exception as error:  # whatever keeps Triton from compiling: no C compiler, no headers, another driver
            reason = f"cannot be compiled ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    warnings.warn(
        f"tokensieve's CUDA kernels {reason}: the plain torch operators run instead, with the same answers, slower",
        TokensieveWarning,
        stacklevel=4,
    )
    return False


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run on these tensors: plain ones on one GPU, float32 or half, no gradient wanted."""
    grad = torch.is_grad_enabled()
    device = None
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or not _on_gpu(tensor) or (grad and tensor.requires_grad):
            return False
        if tensor.dtype not in SERVED or (device is not None and tensor.device != device):
            return False
        device = tensor.device
    return not (followed() or _traced()) and available()


def _traced() -> bool:
    """Whether operators are being recorded or faked: a launch of Triton would leave no trace."""
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))


def dense(*tensors: Tensor | None) -> bool:
    """Whether the last dimension of all lies without gaps."""
    return all(tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in tensors)
