"""Multiply-accumulates, counted from the tokens that each block really ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tokensieve.engine.apply import apply, is_applied, remove
from tokensieve.engine.probe import evaluating
from tokensieve.engine.trace import trace
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of, irreducible
from tokensieve.tokens.record import Stage

NOTHING = "random:keep=1.0"  # a method that removes nothing
COUNTED = (F.linear, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention)


@dataclass(frozen=True)
class BlockCount:
    """Tokens and MACs of one block, per image (means where images keep different numbers of tokens).

    Attributes:
        attended: tokens in attention, prefix included.
        processed: tokens in the MLP, prefix included.
        macs: multiply-accumulates of the block.
    """

    attended: float
    processed: float
    macs: float


@dataclass(frozen=True)
class MacReport:
    """MACs of one image.

    Attributes:
        blocks: every block in order; none of a model that cannot be reduced.
        rest: patch embedding, pooling and head.
    """

    blocks: tuple[BlockCount, ...]
    rest: float

    @property
    def total(self) -> float:
        """All multiply-accumulates of one image."""
        return self.rest + sum(block.macs for block in self.blocks)


def count(model: nn.Module, x: Tensor | Mapping[str, Any]) -> MacReport:
    """Count the MACs of a dense or a reduced model on the images ``x`` (B, C, H, W), as a mean per image.

    A tower of packed images, and any model that wants more than images, is given its inputs by name.

    Blocks are counted by the formula of their family from the tokens they ran on; everything outside them by the
    convolutions, linear layers and attentions that it runs. A method's own arithmetic (matching, scores, learned
    selectors) is not counted, as nowhere in the literature: what it costs shows in S/F. Of a model that cannot be
    reduced every matrix product, convolution and attention that it runs is counted, and no block is told apart.
    """
    if irreducible(model) is not None:
        if not isinstance(x, Tensor):
            raise TokensieveError(f"{type(model).__name__} takes images (B, C, H, W), got {type(x).__name__}")
        with FlopCounterMode(display=False) as counter, evaluating(model):
            # By detached weights: the counter stumbles over a parameter that is passed between modules.
            functional_call(model, model.state_dict(), (x,))
        return MacReport((), counter.get_total_flops() / 2 / x.shape[0])
    located = family_of(model)
    family, blocks = located.family, located.family.blocks(located.owner)
    if (family.in_parts or family.joins) and not is_applied(model):
        # Only a site knows how such blocks have their tokens.
        apply(model, NOTHING)
        try:
            return count(model, x)
        finally:
            remove(model)
    prefix = family.layout(located.owner).prefix
    rest = _OutsideBlocks()
    handles = [block.register_forward_pre_hook(rest.enter) for block in blocks]
    handles += [block.register_forward_hook(rest.leave) for block in blocks]
    try:
        with rest:
            ran = trace(model, x)
    finally:
        for handle in handles:
            handle.remove()
    counts = []
    alive: Tensor | None = None
    images = images_in(model, x)
    each = 1.0 if ran.tokens is None else len(ran.tokens.x) / images  # sequences of an image: of a clip, its frames
    for block, stage in zip(blocks, ran.stages, strict=True):
        cost = family.macs(block)
        attended, processed, pairs = _tokens(stage, alive, prefix)
        alive = stage.alive
        macs = each * (cost.total(attended, processed, pairs) - stage.saved * attended)
        counts.append(BlockCount(attended, processed, macs))
    return MacReport(tuple(counts), rest.macs / images)


def images_in(model: nn.Module, x: Tensor | Mapping[str, Any]) -> int:
    """How many images there are in ``x``."""
    if isinstance(x, Tensor):
        return len(x)
    located = family_of(model)
    lengths = located.family.lengths(located.owner, (), dict(x))
    return len(next(part for part in x.values() if isinstance(part, Tensor))) if lengths is None else len(lengths)


def _tokens(stage: Stage, before: Tensor | None, prefix: int) -> tuple[float, float, float]:
    """Mean tokens in attention and in the MLP of a block, and how many pairs of them attend to one another.

    ``before`` is which slots held a token in the MLP of the block before: they are the ones that attend, unless the
    method acted before this block's attention.
    """

    def present(slots: int, *masks: Tensor | None) -> Tensor:
        mask = next((mask for mask in masks if mask is not None and mask.shape[1] + prefix == slots), None)
        return torch.tensor([slots]) if mask is None else mask.sum(dim=1) + prefix

    processed = present(stage.processed, stage.alive).double()
    attended = present(stage.attended, stage.alive, before).double()
    pairs = attended.square().mean().item() if stage.windows is None else _pairs(stage, before)
    return attended.mean().item(), processed.mean().item(), pairs


def _pairs(stage: Stage, before: Tensor | None) -> float:
    """Mean pairs of a token and one that it attends to in its window, those beyond the border included."""
    assert stage.windows is not None
    windows = stage.windows
    masks = (mask for mask in (stage.alive, before) if mask is not None and mask.shape == windows.shape)
    present = next(masks, torch.ones_like(windows, dtype=torch.bool))
    beyond = windows.new_zeros(len(windows), 0) if stage.beyond is None else stage.beyond
    number = int(torch.cat([windows, beyond], dim=1).max()) + 1
    asking = torch.bincount(windows[present], minlength=number)
    asked = asking + torch.bincount(beyond.flatten(), minlength=number)
    return (asking * asked).sum().item() / len(windows)


class _OutsideBlocks(TorchFunctionMode):
    """Adds up the multiply-accumulates of what runs between ``leave`` of one block and ``enter`` of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self._inside = 0

    def enter(self, *_: Any) -> None:
        self._inside += 1

    def leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside:
            self.macs += call_macs(func, args, kwargs, result)
        return result


def call_macs(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Multiply-accumulates of one call of a linear layer, a convolution or the fused attention; 0 of any other."""
    if func not in COUNTED:
        return 0
    first, second, *others = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    if func is F.scaled_dot_product_attention:
        key, width = second, first.shape[-1] + others[0].shape[-1]
        return int(first.shape[:-1].numel() * key.shape[-2] * width)
    if func is F.conv_transpose2d:
        return int(first.numel() * second[0].numel())
    return int(result.numel() * second[0].numel())
