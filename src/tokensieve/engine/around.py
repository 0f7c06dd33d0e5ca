"""Around the blocks: the class of the module that owns them, so that callers get tensors and never ``Tokens``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tokensieve.engine import running
from tokensieve.engine.block import SievedBlock
from tokensieve.engine.grid import on_grid
from tokensieve.engine.hooks import drop_hooks
from tokensieve.engine.reduction import Reduction, fill_for
from tokensieve.engine.takeover import TakenOver
from tokensieve.errors import RefusedError
from tokensieve.families._family import taken_apart
from tokensieve.tokens.stand_in import StandIn

REDUCTION = "_tokensieve_reduction"  # the attribute of the owner that holds its reduction


class SievedOwner(TakenOver):
    """Mixed into the class of the module that owns the blocks, so that callers get tensors and never ``Tokens``."""

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method."""
        if REDUCTION not in vars(self):  # somebody has kept this method, and the methods were removed since then
            return type(self).forward_features(self, *args, **kwargs)
        reduction, images = _followed(self), taken_apart(args, kwargs)[0]
        check_blocks(self, reduction)
        blocks = None
        running.begin(images)
        try:
            with on_grid(reduction.family.grid_of(self, images), reduction.layout.grid):
                features = super().forward_features(*args, **kwargs)  # type: ignore[misc]
            blocks = reduction.family.block_list(self)
            return features
        finally:
            running.end(blocks)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method, with every intermediate restored."""
        if REDUCTION not in vars(self):
            return type(self).forward_intermediates(self, *args, **kwargs)
        reduction, images = _followed(self), taken_apart(args, kwargs)[0]
        check_blocks(self, reduction)
        running.begin(images)
        try:
            with on_grid(reduction.family.grid_of(self, images), reduction.layout.grid):
                return _whole(super().forward_intermediates(*args, **kwargs))  # type: ignore[misc]
        finally:
            running.end(None)


@dataclass(eq=False)
class RunBefore:
    """The hook in front of a module that owns the blocks: a run begins.

    Attributes:
        reduction: of the model.
    """

    reduction: Reduction

    def __call__(self, module: nn.Module, args: Any) -> None:
        """See ``running.begin``."""
        check_blocks(module, self.reduction)
        running.begin(next(iter(args), None))


@dataclass(eq=False)
class RunBehind:
    """The hook behind it: the run ends, also where the model has raised (then there is no output).

    Attributes:
        reduction: of the model.
    """

    reduction: Reduction

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """See ``running.end``."""
        running.end(None if output is None else self.reduction.family.block_list(module))


def attach(owner: nn.Module, reduction: Reduction) -> None:
    """Watch every call of ``owner`` from now on."""
    owner.register_forward_pre_hook(RunBefore(reduction))
    owner.register_forward_hook(RunBehind(reduction), always_call=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    vars(module).pop(REDUCTION, None)
    drop_hooks(module, RunBefore, RunBehind)


def check_blocks(owner: nn.Module, reduction: Reduction) -> None:
    """The blocks are those that methods were applied to, in their order; some may be left out at the end.

    Raises:
        RefusedError: they are not, or their class has another forward than it had.
    """
    if torch.compiler.is_dynamo_compiling():
        return
    blocks = reduction.family.blocks(owner)
    depth = reduction.layout.depth
    if len(blocks) > depth:
        raise RefusedError(f"there are {len(blocks)} blocks and methods were applied to {depth}: {running.AGAIN}")
    for number, block in enumerate(blocks):
        site: Any = running.site_in(block) if number >= reduction.first else block._modules.get(running.SITE)
        found = None if site is None else site.block
        if found != (number if number >= reduction.first else None):
            wanted = "has no methods" if found is None else f"is the one that was block {found}"
            raise RefusedError(
                f"block {number} {wanted} although they were applied to the model: it was put there, moved, or had "
                f"them removed; {running.AGAIN}"
            )
        if isinstance(block, SievedBlock) and site.own is not None and block.own() is not site.own:
            raise RefusedError(
                f"forward of the class of block {number} was replaced after ts.apply, where methods run the halves of "
                f"the one before: {running.AGAIN}"
            )


def _followed(owner: Any) -> Reduction:
    """The reduction of ``owner``, after its head was changed with another fill for tokens that are gone."""
    reduction: Reduction = vars(owner)[REDUCTION]
    fill = fill_for(reduction.family.pools(owner, owner)) if reduction.follows_head else reduction.fill
    if fill != reduction.fill:
        vars(owner)[REDUCTION] = reduction = replace(reduction, fill=fill)
        for block in reduction.family.blocks(owner):
            site = running.site_in(block)
            if site is not None:
                site.settle(replace(site.reduction, fill=fill))
    return reduction


def _whole(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.restore("last")
    if isinstance(value, dict):
        return {key: _whole(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return value
