"""The patch grid of the image that runs now, where it is not the model's own: the sequence in a block does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.engine.hooks import drop_hooks
from tokensieve.families._layout import Grid

_RUNNING: ContextVar[Grid | None] = ContextVar("tokensieve_grid", default=None)


def running_grid() -> Grid | None:
    """(rows, columns) of the image that runs now; None where it is the model's own or not known."""
    return _RUNNING.get()


def run_on(grid: Grid | None) -> None:
    """Say what ``running_grid`` answers from now on."""
    if _RUNNING.get() != grid:
        _RUNNING.set(grid)


@contextmanager
def on_grid(grid: Grid, own: Grid) -> Iterator[None]:
    """Let the sites know the grid of an image; ``own`` is that of the model."""
    before = running_grid()
    run_on(None if grid == own else grid)
    try:
        yield
    finally:
        run_on(before)


@dataclass(eq=False)
class GridBefore:
    """The hook in front of the module that owns the blocks: reads the grid from the images.

    Attributes:
        name: of the argument, the first one, that holds the images (B, C, H, W).
        patch: the size of a patch along each axis of the grid, (height, width) in pixels; what does not fill one is
            left out, as the model does.
        own: the model's grid.
    """

    name: str
    patch: Grid
    own: Grid

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Say what the grid of these images is."""
        images = kwargs.get(self.name, args[0] if args else None)
        if images is None:
            return
        sides = images.shape[-len(self.patch) :]
        grid = tuple(side // size for side, size in zip(sides, self.patch, strict=True))
        run_on(None if grid == self.own else grid)


@dataclass(eq=False)
class GridBehind:
    """The hook behind it: forgets the grid, also where the model has raised."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget the grid."""
        run_on(None)


def attach(owner: nn.Module, name: str, patch: Grid, own: Grid) -> None:
    """Read the grid of the images whenever ``owner`` is called from now on; see ``GridBefore``."""
    owner.register_forward_pre_hook(GridBefore(name, patch, own), with_kwargs=True)
    owner.register_forward_hook(GridBehind(), always_call=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    drop_hooks(module, GridBefore, GridBehind)
