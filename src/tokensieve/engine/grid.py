"""The patch grid of the image that runs now, where it is not the model's own: the sequence in a block does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.engine.hooks import drop_hooks
from tokensieve.families._family import Family
from tokensieve.families._layout import Grid

_RUNNING: ContextVar[Grid | None] = ContextVar("tokensieve_grid", default=None)


def running_grid() -> Grid | None:
    """(rows, columns) of the image that runs now, () where it is not known; None: the model's own."""
    return _RUNNING.get()


def run_on(grid: Grid | None) -> None:
    """Say what ``running_grid`` answers from now on."""
    if _RUNNING.get() != grid:
        _RUNNING.set(grid)


def unless_own(grid: Grid | None, own: Grid) -> Grid | None:
    """What ``running_grid`` answers for ``grid``, None where it is not known, in a model whose own is ``own``."""
    return None if grid == own else grid or ()


@contextmanager
def on_grid(grid: Grid | None, own: Grid) -> Iterator[None]:
    """Let the sites know the grid of an image; ``own`` is that of the model."""
    before = running_grid()
    run_on(unless_own(grid, own))
    try:
        yield
    finally:
        run_on(before)


@dataclass(eq=False)
class GridBefore:
    """The hook in front of the module that owns the blocks: reads the grid from the images.

    Attributes:
        family: of the model; its ``images`` names the argument, the first one, that holds them.
        own: the model's grid.
    """

    family: Family
    own: Grid

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Say what the grid of these images is."""
        assert self.family.images is not None
        images = kwargs.get(self.family.images, args[0] if args else None)
        if images is not None:
            run_on(unless_own(self.family.grid_of(module, images), self.own))


@dataclass(eq=False)
class GridBehind:
    """The hook behind it: forgets the grid, also where the model has raised."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget the grid."""
        run_on(None)


def attach(owner: nn.Module, family: Family, own: Grid) -> None:
    """Read the grid of the images whenever ``owner`` is called from now on; see ``GridBefore``."""
    owner.register_forward_pre_hook(GridBefore(family, own), with_kwargs=True)
    owner.register_forward_hook(GridBehind(), always_call=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    drop_hooks(module, GridBefore, GridBehind)
