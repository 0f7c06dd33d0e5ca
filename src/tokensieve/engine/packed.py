"""Images that lie one behind the other in one row: how many patches each has, for the blocks inside."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.engine.hooks import drop_hooks
from tokensieve.errors import RefusedError
from tokensieve.families._family import Family

_LENGTHS: ContextVar[tuple[int, ...] | None] = ContextVar("tokensieve_lengths", default=None)


def split(x: Tensor) -> Tensor:
    """(B, N, C), the images of a row ``x`` (T, C) that goes through the blocks.

    Raises:
        RefusedError: they differ in their number of patches, or nobody knows how many there are.
    """
    lengths = _LENGTHS.get()
    if lengths is None or sum(lengths) != len(x):
        raise RefusedError(
            "the blocks of a tower of packed images were run without the tower around them, which says how many "
            "patches each image has: call the tower"
        )
    if len(set(lengths)) > 1:
        raise RefusedError(
            f"images of {', '.join(map(str, sorted(set(lengths))))} patches are packed in one row: with methods "
            "applied give the tower images of one size at a time"
        )
    return x.view(len(lengths), lengths[0], x.shape[1])


@dataclass(eq=False)
class LengthsBefore:
    """The hook in front of the module that owns the blocks: reads the number of patches of each image.

    Attributes:
        family: of the model.
    """

    family: Family

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Say how many patches the images have."""
        _LENGTHS.set(self.family.lengths(module, args, kwargs))


@dataclass(eq=False)
class LengthsBehind:
    """The hook behind it: forgets them, also where the model has raised."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget the numbers."""
        _LENGTHS.set(None)


def attach(owner: nn.Module, family: Family) -> None:
    """Read the lengths of the images whenever ``owner`` is called from now on."""
    owner.register_forward_pre_hook(LengthsBefore(family), with_kwargs=True)
    owner.register_forward_hook(LengthsBehind(), always_call=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    drop_hooks(module, LengthsBefore, LengthsBehind)
