"""Images that lie one behind the other in one row: how many patches each has, for the blocks inside."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from tokensieve.engine.hooks import drop_hooks
from tokensieve.errors import RefusedError
from tokensieve.families._family import Family
from tokensieve.tokens.form import InRow

_LENGTHS: ContextVar[tuple[int, ...] | None] = ContextVar("tokensieve_lengths", default=None)


def forms(x: Tensor) -> list[InRow]:
    """Where the images of a row ``x`` (T, C) are that goes through the blocks, those of one size together.

    Raises:
        RefusedError: nobody knows how many patches each has.
    """
    lengths = _LENGTHS.get()
    if lengths is None or sum(lengths) != x.shape[-2]:
        raise RefusedError(
            "the blocks of a tower of packed images were run without the tower around them, which says how many "
            "patches each image has: call the tower"
        )
    starts: dict[int, list[int]] = {}
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        starts.setdefault(length, []).append(start)
    return [InRow(x.shape, tuple(found), length, len(lengths)) for length, found in starts.items()]


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
