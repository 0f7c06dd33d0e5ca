"""A learned threshold: a hard step in the forward pass, the slope of a sigmoid in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def soft_step(score: Tensor, threshold: Tensor | float, temperature: float) -> Tensor:
    """Whether ``score`` lies above ``threshold``, softly: sigmoid((score − threshold) / temperature), in (0, 1)."""
    return ((score - threshold) / temperature).sigmoid()


def hard_step(soft: Tensor) -> Tensor:
    """0 or 1 by whether ``soft`` is above one half, with the gradient of ``soft`` (straight-through)."""
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())


class Threshold(nn.Module):
    """A threshold on scores that is learned with the model.

    Above it is 1, below 0, exactly; the gradient is that of a sigmoid of the given temperature, for the threshold and
    for the scores. The sharper the temperature, the nearer to the threshold a score must lie to move it.

    Args:
        start: the first value.
        temperature: width of the sigmoid in units of the score.
    """

    def __init__(self, start: float, temperature: float = 1e-4) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.value = nn.Parameter(torch.tensor([float(start)]))  # FSDP shards no scalar

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

    def forward(self, score: Tensor) -> Tensor:
        """(B, M) scores to a mask (B, M) of zeros and ones."""
        return hard_step(soft_step(score, self.value.to(score.dtype), self.temperature))
