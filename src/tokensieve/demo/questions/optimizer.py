"""The optimizer that trains the question model: on few canvases it gets further than AdamW alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

TIMES = 2.0  # the rate of matrices over that of everything else
MOMENTUM, DECAY = 0.95, 0.02
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the iteration that brings singular values near 1
ITERATIONS = 5


class Orthogonal:
    """Muon (Jordan et al., 2024) for the matrices of layers, AdamW for everything else; gradients clipped to norm 1.

    The update of a matrix is its momentum (Nesterov) with all singular values near one, times 0.2 · √(larger side),
    so that its entries are as large as AdamW's (Liu et al., 2025, arXiv 2502.16982). torch's own runs the iteration in
    bfloat16, which takes longer than the model on a CPU without it.

    Args:
        parts: whose parameters learn.
        rate: the highest learning rate.
    """

    def __init__(self, parts: nn.Module, rate: float) -> None:
        learning = {name: value for name, value in parts.named_parameters() if value.requires_grad}
        self.matrices = [value for name, value in learning.items() if value.dim() == 2 and ".layers." in name]
        chosen = set(map(id, self.matrices))
        others = [value for value in learning.values() if id(value) not in chosen]
        self.adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=DECAY, fused=True)
        self.rate, self.all = rate, list(learning.values())
        self.momentum = [torch.zeros_like(value) for value in self.matrices]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Learn from the gradients, at a share of the highest rate, and clear them."""
        nn.utils.clip_grad_norm_(self.all, 1.0)
        for value, momentum in zip(self.matrices, self.momentum, strict=True):
            assert value.grad is not None
            momentum.lerp_(value.grad, 1 - MOMENTUM)
            update = orthogonal(value.grad.lerp(momentum, MOMENTUM))
            rate = TIMES * self.rate * share
            value.mul_(1 - rate * DECAY).add_(update, alpha=-0.2 * math.sqrt(max(value.shape)) * rate)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * share
        self.adam.step()
        for value in self.all:
            value.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes."""
        return {"adam": self.adam.state_dict(), "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.adam.load_state_dict(state["adam"])
        for own, value in zip(self.momentum, state["momentum"], strict=True):
            own.copy_(value)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (R, C) with its singular values brought near 1."""
    a, b, c = QUINTIC
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
