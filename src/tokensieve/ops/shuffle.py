"""A shuffled order by arithmetic on the device: nothing is copied from the host, so a CUDA graph can hold it."""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR, STEP, MODULUS = 1664525, 1013904223, 2**32  # the linear congruential generator of Numerical Recipes


def shuffled(length: int, seed: int, device: torch.device) -> Tensor:
    """(length,) int64: the numbers below ``length`` in an order drawn from ``seed``, the same on every machine.

    Number i gets the i-th state of a linear congruential generator, less its eight weakest bits, as its key. A block of
    L states jumps to the next L by one multiplication, so log2(length) steps give all of them.
    """
    if torch.compiler.is_exporting():
        return torch.tensor(_listed(length, seed), device=device)
    states = torch.full((1,), _first(seed), device=device)
    factor, step = FACTOR, STEP
    while states.shape[0] < length:
        # int64 products wrap around at 2^64, which leaves them right modulo 2^32.
        states = torch.cat([states, (states * factor + step) % MODULUS])
        factor, step = factor * factor % MODULUS, (factor * step + step) % MODULUS
    return (states[:length] // 256).argsort(stable=True)


def _first(seed: int) -> int:
    return (FACTOR * ((seed * 2654435761 + 1) % MODULUS) + STEP) % MODULUS


def _listed(length: int, seed: int) -> list[int]:
    """The same order in Python's numbers: an exported graph holds it, for OpenVINO has 32 bits to multiply in."""
    states = [_first(seed)]
    while len(states) < length:
        states.append((FACTOR * states[-1] + STEP) % MODULUS)
    return sorted(range(length), key=lambda i: states[i] // 256)
