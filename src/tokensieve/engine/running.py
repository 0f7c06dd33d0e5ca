"""One run of a reduced model, as the module around its blocks sees it: what ran is compared with what was applied."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokensieve.errors import RefusedError

SITE = "tokensieve"  # the name of the child module that a block with sites carries
AGAIN = "call ts.remove(model), change it, and apply again"


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


def begin(images: Any = None) -> None:
    """A run on ``images`` begins. In the graphs of a compiler nothing is watched: there, what ran is what was traced.

    Raises:
        RefusedError: torch.fx traces it.
    """
    if isinstance(images, torch.fx.Proxy):
        raise RefusedError(
            "torch.fx cannot trace a model with reduced tokens, whose blocks hand on more than tensors: for features "
            "use forward_intermediates or ts.apply(..., taps=[…]), for a graph torch.export, or trace the dense model "
            "after ts.remove"
        )
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
    if blocks is None:
        return
    sites = [site for block in blocks if (site := site_in(block)) is not None]
    if not sites or any(map(is_compiled, (blocks, *blocks))):
        return
    if not run.blocks or run.blocks[-1] != sites[-1].block:
        raise RefusedError(not_asked(sites[-1].block if run.blocks else sites[0].block))


def site_in(block: nn.Module) -> Any:
    """The Site of a block, also of one inside of what others have wrapped around it; None where it has none."""
    own = block._modules.get(SITE)
    if own is not None:
        return own
    return next((part._modules[SITE] for part in block.modules() if SITE in part._modules), None)


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of ``module``, or a forward that was set on it, goes through a compiler."""
    set_on_it = any(hasattr(value, "_torchdynamo_orig_callable") for value in vars(module).values())
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule" or set_on_it


def not_asked(number: int) -> str:
    """What to say where a block ran without its methods."""
    return (
        f"block {number} ran without the methods in it: its forward was replaced after ts.apply by one that does not "
        "call the block's own, or a hook put a tensor in the place of what the block before handed on; keep what "
        f"module.forward was and call it, read and change plain tensors with ts.apply(..., taps=[{max(number - 1, 0)}])"
        ", or ts.remove(model)"
    )
