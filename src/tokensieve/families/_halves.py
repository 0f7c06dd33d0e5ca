"""Blocks of two halves that differ in the names of their parts: what most families are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.families._family import BlockMacs, Family, linear_macs
from tokensieve.families._modules import norm_of, through
from tokensieve.ops.norm import Norm


@dataclass(frozen=True)
class Halves:
    """The parts of a block by their names: x + behind(attention(norm(x))), then x + behind(mlp(norm(x))).

    Attributes:
        attention, mlp: what runs behind each norm; of several parts of an MLP each is given the one before's answer.
        norm1, norm2: the norms in front of them; "" where there is none.
        behind1, behind2: what the answer goes through before it is added: a module, or a parameter that scales it; one
            that a block lacks, or has as None, is left out.
        adds: whether x is added to the MLP's answer here, or by the last part of the MLP, which is given x as well.
        arguments: names of what the block gets by position behind its tokens.
        first: whether x is the first operand of both sums, which lie in memory as their first operand does.
    """

    norm1: str
    attention: str
    norm2: str
    mlp: tuple[str, ...] = ("mlp",)
    behind1: tuple[str, ...] = ()
    behind2: tuple[str, ...] = ()
    adds: bool = True
    arguments: tuple[str, ...] = ("attention_mask",)
    first: bool = False

    def sum(self, x: Tensor, update: Tensor) -> Tensor:
        """Both added, in the order of the block."""
        return x + update if self.first else update + x


class HalvesFamily(Family):
    """A family whose blocks are told apart by the names of their parts.

    Class attributes:
        shapes: the parts of each class of blocks, by its full name.
    """

    shapes: ClassVar[Mapping[str, Halves]] = {}

    def __init__(self) -> None:
        self.known: dict[type[nn.Module], Halves] = {}  # by class, whose bases take longer to walk than a kernel

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "shapes" in vars(cls):
            cls.block_types = tuple(cls.shapes)

    def halves(self, block: nn.Module) -> Halves:
        """The parts of ``block``."""
        found = self.known.get(type(block))
        return self.know(block) if found is None else found

    def know(self, block: nn.Module) -> Halves:
        """Look the parts of ``block`` up for good."""
        names = (f"{base.__module__}.{base.__qualname__}" for base in type(block).__mro__)
        found = next(self.shapes[name] for name in names if name in self.shapes)
        if not torch.compiler.is_dynamo_compiling():
            self.known[type(block)] = found
        return found

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, **dict(zip(self.halves(block).arguments, args, strict=False))}

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        halves = self.halves(block)
        out = getattr(block, halves.attention)(self.attention_input(block, x), **kwargs)
        return halves.sum(x, behind(block, out[0] if isinstance(out, tuple) else out, halves.behind1))

    def attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        return after_norm(block, self.halves(block).norm1, x)

    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        return self.mlp_behind_norm(block, x, after_norm(block, self.halves(block).norm2, x))

    def mlp_norm(self, block: nn.Module) -> Norm | None:
        return norm_of(getattr(block, self.halves(block).norm2, None))

    def mlp_behind_norm(self, block: nn.Module, x: Tensor, normed: Tensor) -> Tensor:
        halves = self.halves(block)
        *first, last = halves.mlp
        for name in first:
            normed = getattr(block, name)(normed)
        if not halves.adds:
            return getattr(block, last)(normed, x)  # type: ignore[no-any-return]
        return halves.sum(x, behind(block, getattr(block, last)(normed), halves.behind2))

    def macs(self, block: nn.Module) -> BlockMacs:
        halves = self.halves(block)
        attention: nn.Module = getattr(block, halves.attention)
        mlp = sum(linear_macs(getattr(block, name)) for name in halves.mlp)
        heads, width = heads_of(attention)
        return BlockMacs(linear_macs(attention), mlp, heads * width)


def after_norm(block: nn.Module, name: str, x: Tensor) -> Tensor:
    """``x`` behind the norm of ``block`` called ``name``, where there is one."""
    return getattr(block, name)(x) if name else x  # type: ignore[no-any-return]


def behind(block: nn.Module, update: Tensor, names: tuple[str, ...]) -> Tensor:
    """``update`` behind the parts of ``block`` called ``names``; a parameter scales it."""
    for name in names:
        part = getattr(block, name, None)
        if isinstance(part, nn.Module):
            update = through(update, part)
        elif part is not None:
            update = part * update
    return update


def heads_of(attention: nn.Module) -> tuple[int, int]:
    """(heads, channels of a head) of an attention, or of the one inside it."""
    for part in attention.modules():
        heads = getattr(part, "num_attention_heads", None) or getattr(part, "num_heads", None)
        width = getattr(part, "head_dim", None) or getattr(part, "attention_head_size", None)
        joined = getattr(getattr(part, "qkv", None), "out_features", None)  # also of a layer that PEFT has wrapped
        if width is None and isinstance(heads, int) and isinstance(joined, int):
            width = joined // (3 * heads)
        queries = getattr(part, "q_proj", None)
        if heads is None and isinstance(width, int) and isinstance(queries, nn.Module):
            sizes = (getattr(layer, "out_features", None) for layer in queries.modules())
            heads = next((size // width for size in sizes if isinstance(size, int)), None)
        if isinstance(heads, int) and isinstance(width, int):
            return heads, width
    raise AttributeError(f"{type(attention).__name__} does not say how many heads it has")
