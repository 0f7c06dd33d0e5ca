"""Attention maps that two neighbouring blocks use: the second one computes values and the projection and no more.

The map itself is never stored. What travels to the next block are the queries and keys it was made from; the fused
kernel makes it again, and the block's own query and key projections are left out where they can be told from the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.tokens.decision import Assignment, Decision, KeepMask
from tokensieve.tokens.node import register
from tokensieve.tokens.rider import Moment, Rider


@dataclass(frozen=True)
class SharedMaps(Rider):
    """Where the attention maps of a block come from, for the block behind it. Once tokens move they fit no longer.

    Attributes:
        pairs: the queries and keys (B, H, L, D) of each of its attentions.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...]

    def follow(self, decision: Decision, moment: Moment) -> Rider | None:
        return self if isinstance(decision, KeepMask) else None

    def returned(self, block: int, after_attention: bool) -> Rider | None:
        return None

    def hide(self, assignment: Assignment, moment: Moment) -> Rider | None:
        return None


@dataclass(frozen=True)
class Projection:
    """A linear layer whose first rows give queries or keys and nothing else."""

    weight: Tensor
    rows: int


def projections(block: nn.Module) -> list[tuple[Projection, ...]]:
    """For each attention of ``block``: one projection with queries and keys in front, or one of each."""
    found: list[tuple[Projection, ...]] = []
    for module in block.modules():
        layers: dict[str, Any] = {name: layer for name, layer in module.named_children() if type(layer) is nn.Linear}
        whole = layers.get("qkv")
        heads = getattr(module, "num_heads", None)
        if whole is not None and getattr(module, "num_kv_heads", heads) == heads:
            found.append((Projection(whole.weight, whole.out_features * 2 // 3),))
        for query, key in (("q_proj", "k_proj"), ("query", "key")):
            if query in layers and key in layers:
                found.append(tuple(Projection(layers[n].weight, layers[n].out_features) for n in (query, key)))
    return found


class SharingTap(Tap):
    """A tap that lets a block attend by the maps of the block before.

    Args:
        maps: of the block before.
        block: the one that is tapped.
        others: as ``Tap`` has them.
    """

    attention_alone = False

    def __init__(self, maps: SharedMaps, block: nn.Module, *others: Any) -> None:
        super().__init__(*others)
        self.maps = maps
        found = projections(block)
        widths = [(sum(part.rows for part in parts)) for parts in found]
        fits = widths == [(q.shape[1] + k.shape[1]) * q.shape[3] for q, k in maps.pairs]
        self.skipped = [part for parts in found for part in parts] if fits else []
        self.saved = sum(part.rows * part.weight.shape[1] for part in self.skipped)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        for part in self.skipped:
            if weight is part.weight:
                nothing = input.new_zeros(*input.shape[:-1], part.rows)
                if part.rows == weight.shape[0]:
                    return nothing
                values = F.linear(input, weight[part.rows :], None if bias is None else bias[part.rows :])
                return torch.cat([nothing.to(values.dtype), values], dim=-1)
        return F.linear(input, weight, bias)

    def answer(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        place = len(self.calls)
        if place < len(self.maps.pairs):
            theirs = self.maps.pairs[place]
            if query.shape == theirs[0].shape and key.shape == theirs[1].shape:
                query, key = theirs
        return super().answer(query, key, *args, **kwargs)


register(SharedMaps, ("pairs",))
