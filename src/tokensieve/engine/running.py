"""One run of a reduced model, as the module around its blocks sees it: what ran is compared with what was applied."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokensieve.engine.reduction import Reduction
from tokensieve.errors import RefusedError

SITE = "tokensieve"  # the name of the child module that a block with sites carries


@dataclass(eq=False)
class Run:
    """A run that is going on.

    Attributes:
        gradients: whether they were wanted around the blocks.
        outer: the run inside of which this one began.
        blocks: numbers of those whose methods were asked so far.
    """

    gradients: bool
    outer: Run | None
    blocks: list[int] = field(default_factory=list)


_RUNNING: ContextVar[Run | None] = ContextVar("tokensieve_run", default=None)


def begin() -> None:
    """A run begins. In the graphs of a compiler nothing is watched: there, what ran is what was traced."""
    if not torch.compiler.is_dynamo_compiling():
        _RUNNING.set(Run(torch.is_grad_enabled(), _RUNNING.get()))


def at_block(number: int) -> None:
    """The methods of a block are asked.

    Raises:
        RefusedError: gradients were wanted around the blocks, and inside they are off.
    """
    if torch.compiler.is_dynamo_compiling():
        return
    run = _RUNNING.get()
    if run is None:
        return
    run.blocks.append(number)
    if run.gradients and not torch.is_grad_enabled():
        raise RefusedError(
            f"gradients are on around the blocks and off inside block {number}, as with reentrant checkpointing, which "
            "would lose the gradients of a model with reduced tokens: use torch.utils.checkpoint with "
            "use_reentrant=False (timm.layers.set_reentrant_ckpt(False); in transformers "
            "gradient_checkpointing_enable({'use_reentrant': False})), or run under torch.no_grad()"
        )


def end(blocks: nn.ModuleList | nn.Sequential | None) -> None:
    """The run ends; with its ``blocks``, all of which were to run, the last one is looked for among those that did.

    Raises:
        RefusedError: its methods were not asked.
    """
    if torch.compiler.is_dynamo_compiling():
        return
    run = _RUNNING.get()
    if run is None:
        return
    _RUNNING.set(run.outer)
    last: Any = blocks[-1] if blocks else None
    site: Any = None if last is None else last._modules.get(SITE)
    compiled = last is not None and last._compiled_call_impl is not None
    if site is not None and not compiled and run.blocks and run.blocks[-1] != site.block:
        raise RefusedError(not_asked(site.block))


def not_asked(number: int) -> str:
    """What to say where a block ran without its methods."""
    return (
        f"block {number} ran without the methods in it: its forward was replaced after ts.apply by one that does not "
        "call the block's own, or a hook put a tensor in the place of what the block before handed on; keep what "
        f"module.forward was and call it, read and change plain tensors with ts.apply(..., taps=[{max(number - 1, 0)}])"
        ", or ts.remove(model)"
    )


@dataclass(eq=False)
class RunBefore:
    """The hook in front of a module that owns the blocks: a run begins."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        """See ``begin``."""
        begin()


@dataclass(eq=False)
class RunBehind:
    """The hook behind it: the run ends, also where the model has raised (then there is no output).

    Attributes:
        reduction: of the model.
    """

    reduction: Reduction

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """See ``end``."""
        end(None if output is None else self.reduction.family.block_list(module))


def attach(owner: nn.Module, reduction: Reduction) -> None:
    """Watch every call of ``owner`` from now on."""
    owner.register_forward_pre_hook(RunBefore())
    owner.register_forward_hook(RunBehind(reduction), always_call=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    for key, before in list(module._forward_pre_hooks.items()):
        if isinstance(before, RunBefore):
            del module._forward_pre_hooks[key]
    for key, behind in list(module._forward_hooks.items()):
        if isinstance(behind, RunBehind):
            del module._forward_hooks[key], module._forward_hooks_always_called[key]
