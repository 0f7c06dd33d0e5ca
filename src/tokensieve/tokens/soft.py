"""The sparse side of soft assignments: matrices of which only the weights that are not zero are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.rows import at_least_float32, take_rows


class Mixing(ABC):
    """The matrix (B, S, M) of a soft assignment, mostly zeros: what can be done with it without ever writing it out.

    Attributes:
        leaders: (B, S) int64 in [0, M), the old token whose position each new one carries.
    """

    leaders: Tensor

    @property
    def count(self) -> int:
        """S, the number of new tokens."""
        return self.leaders.shape[1]

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """(B, M, D) to (B, S, D), float32 or better: the matrix with rows that sum to one, times ``values``."""

    @abstractmethod
    def share(self, values: Tensor) -> Tensor:
        """(B, M, D) to (B, S, D), float32 or better: the matrix with columns that sum to one, times ``values``."""


@dataclass(frozen=True)
class Blend:
    """The way back from a soft assignment where each old token is a weighted sum of a few new ones.

    Attributes:
        index: (B, M, K) int64 in [0, S), the new tokens.
        weight: (B, M, K) their weights, float32 or better.
    """

    index: Tensor
    weight: Tensor

    def __call__(self, new: Tensor) -> Tensor:
        """(B, S, C) to (B, M, C), in the dtype of ``new``; sums are made in float32 or better."""
        batch, count, terms = self.index.shape
        with torch.autocast(new.device.type, enabled=False):
            values = at_least_float32(new)
            weight = self.weight.to(values.dtype)
            if torch.compiler.is_compiling():  # a compiler joins the loop, and other runtimes have no bags
                parts = (take_rows(values, self.index[:, :, k]) * weight[:, :, k : k + 1] for k in range(terms))
                return sum(parts, torch.zeros((), dtype=values.dtype, device=values.device)).to(new.dtype)
            offsets = torch.arange(batch, device=new.device).view(batch, 1, 1) * new.shape[1]
            bags = (self.index + offsets).reshape(batch * count, terms)
            table = values.reshape(batch * new.shape[1], -1)
            summed = F.embedding_bag(bags, table, per_sample_weights=weight.reshape(batch * count, terms), mode="sum")
        return summed.view(batch, count, -1).to(new.dtype)

    def averaging(self) -> Blend:
        """The same with weights that sum to one."""
        total = self.weight.sum(dim=2, keepdim=True).clamp(min=torch.finfo(self.weight.dtype).tiny)
        return Blend(self.index, self.weight / total)
