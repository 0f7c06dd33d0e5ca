"""Soft assignments: every new token is a weighted sum of all, by a matrix or by the few weights that are not zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.errors import RefusedError
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
            table = values.reshape(batch * new.shape[1], new.shape[2])
            summed = F.embedding_bag(bags, table, per_sample_weights=weight.reshape(batch * count, terms), mode="sum")
        return summed.view(batch, count, new.shape[2]).to(new.dtype)

    def averaging(self) -> Blend:
        """The same with weights that sum to one."""
        total = self.weight.sum(dim=2, keepdim=True).clamp(min=torch.finfo(self.weight.dtype).tiny)
        return Blend(self.index, self.weight / total)


class LearnedRestore(nn.Module):
    """Base of ways back that are learned: part of one block, and run behind the last one.

    Sharded training keeps it apart from its block, which has given its weights back by then.
    """

    def refuse_shards(self) -> None:
        """Refuse weights of which only a shard is here; called first when it runs.

        Raises:
            RefusedError: it is sharded together with its block.
        """
        if any(hasattr(weight, "device_mesh") for weight in self.parameters()):
            kind = type(self)
            raise RefusedError(
                f"the {kind.__name__} of a method runs behind the last block, when its own block has given its weights "
                f"back: call fully_shard on every {kind.__module__}.{kind.__name__} before its block"
            )


SoftRestore = Tensor | Blend | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SoftAssignment:
    """Every new token is a weighted sum of the M patch tokens present.

    Attributes:
        matrix: (B, S, M). New tokens are ``matrix @ x``. A ``Mixing`` where most of it is zero, with rows that sum to
            one; ``restore`` must be given then.
        restore: (B, M, S) matrix, a ``Blend`` where most of that is zero, or a function
            ``(y (B, S, C), x_before (B, M, C)) -> (B, M, C)``, or None for the transpose of ``matrix`` with rows
            normalised to one.
        until: when the old tokens come back, made of the new ones: "end", behind the last block, or "block", behind the
            block that follows the decision.
    """

    matrix: Tensor | Mixing
    restore: SoftRestore | None = None
    until: Literal["end", "block"] = "end"

    @property
    def count(self) -> int:
        """S, the number of new tokens."""
        return self.matrix.count if isinstance(self.matrix, Mixing) else self.matrix.shape[1]

    def weights(self, length: int) -> Tensor:
        """(B, S, M) the matrix over ``length`` = M tokens, written out; rows of a ``Mixing`` sum to one."""
        if isinstance(self.matrix, Tensor):
            return self.matrix
        identity = torch.eye(length, device=self.matrix.leaders.device)
        return self.matrix.mean(identity.expand(self.matrix.leaders.shape[0], -1, -1))


def rows_to_one(matrix: Tensor) -> Tensor:
    """``matrix`` with rows that sum to one; rows of zeros stay as they are."""
    return matrix / matrix.sum(dim=2, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)


def leaders(matrix: Tensor | Mixing) -> Tensor:
    """(B, S): the old token whose position each new token of a soft assignment carries."""
    return matrix.leaders if isinstance(matrix, Mixing) else matrix.argmax(dim=2)


def mixed(matrix: Tensor | Mixing, values: Tensor) -> Tensor:
    """``matrix @ values``: (B, M, D) of old tokens to (B, S, D) of new ones, in the dtype of ``values``."""
    if isinstance(matrix, Mixing):
        return matrix.mean(values).to(values.dtype)
    return matrix.to(values.dtype) @ values


def shared_out(matrix: Tensor | Mixing, values: Tensor, way_back: Tensor | None = None) -> Tensor:
    """(B, M, D) to (B, S, D): each old token's value divided among the new ones, so that sums stay.

    It is divided as the columns of ``matrix``, or as the rows of ``way_back`` (B, M, S) where that is given.
    """
    if isinstance(matrix, Mixing):
        return matrix.share(values)
    share = rows_to_one(matrix.transpose(1, 2)) if way_back is None else way_back
    return share.transpose(1, 2).to(values.dtype) @ values


def given_back(way_back: SoftRestore, new: Tensor, before: Tensor) -> Tensor:
    """(B, M, C): the old tokens from the new ones (B, S, C), ``before`` (B, M, C) being what the old ones were."""
    if isinstance(way_back, Tensor):
        return way_back.to(new.dtype) @ new
    return way_back(new) if isinstance(way_back, Blend) else way_back(new, before)
