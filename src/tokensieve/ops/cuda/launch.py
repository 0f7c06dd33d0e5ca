"""Launching a Triton kernel on the device of its tensors."""

from __future__ import annotations

from typing import Any

import torch
import triton


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` on ``grid``; the first argument is a tensor and says where."""
    device = arguments[0].device
    # Said aloud because Triton's default changes: the products in float32 are slow without it.
    constants["enable_fp_fusion"] = True
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


def power_of_two(length: int, least: int = 1) -> int:
    """The smallest power of two that is neither below ``length`` nor below ``least``."""
    return int(triton.next_power_of_2(max(length, least)))


def blocks(length: int, block: int) -> int:
    """How many blocks of ``block`` hold ``length`` entries."""
    return -(-length // block)
