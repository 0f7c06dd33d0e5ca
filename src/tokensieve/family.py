"""The protocol of a model family: how to run a block's two halves by calling the block's own submodules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.view import Layout


@dataclass(frozen=True)
class BlockMacs:
    """What a block costs on a tokens in attention and m in the MLP: attention_linear·a + 2·width·a² + mlp_linear·m.

    Attributes:
        attention_linear: MACs of the attention's projections, per token.
        mlp_linear: MACs of the MLP, per token.
        attention_width: heads times head dimension.
    """

    attention_linear: int
    mlp_linear: int
    attention_width: int

    def total(self, attended: float, processed: float) -> float:
        """Multiply-accumulates on these tokens."""
        return self.attention_linear * attended + 2 * self.attention_width * attended**2 + self.mlp_linear * processed


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers inside ``module``."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


class Family(ABC):
    """A model family. A subclass is one file under families/; it never sees a method.

    Class attributes:
        name: what tables and errors call it.
        description: one line for ``tokensieve families``.
        block_types: the block classes it can run in halves.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    block_types: ClassVar[tuple[type[nn.Module], ...]]

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` owns blocks of this family."""
        blocks = getattr(module, "blocks", None)
        if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
            return False
        return hasattr(module, "num_prefix_tokens") and all(isinstance(b, self.block_types) for b in blocks)

    def blocks(self, owner: nn.Module) -> list[nn.Module]:
        """The blocks of ``owner`` in the order they run."""
        return list(owner.blocks)  # type: ignore[arg-type]

    def refuse(self, owner: nn.Module) -> str | None:
        """Why this owner cannot be reduced although its blocks match, or None."""
        return None

    @abstractmethod
    def layout(self, owner: nn.Module) -> Layout:
        """The token layout of ``owner``."""

    @abstractmethod
    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        """``x`` (B, L, C) after the attention half of the block, residual included."""

    @abstractmethod
    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x`` (B, L, C) after the MLP half of the block, residual included."""

    @abstractmethod
    def macs(self, block: nn.Module) -> BlockMacs:
        """What the block costs."""

    def reindex(self, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        """The block's keyword arguments for tokens at original patch ``positions`` (B, M). Default: unchanged."""
        return kwargs
