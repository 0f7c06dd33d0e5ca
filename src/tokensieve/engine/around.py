"""Around the blocks: the class of the module that owns them, so that callers get tensors and never ``Tokens``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from tokensieve.engine.grid import on_grid
from tokensieve.engine.takeover import TakenOver
from tokensieve.tokens.state import Tokens


class SievedOwner(TakenOver):
    """Mixed into the class of the module that owns the blocks, so that callers get tensors and never ``Tokens``."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method."""
        with _on_grid_of(self, x):
            return super().forward_features(x, *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method, with every intermediate restored."""
        with _on_grid_of(self, x):
            return _whole(super().forward_intermediates(x, *args, **kwargs))  # type: ignore[misc]


def _on_grid_of(owner: Any, image: Tensor) -> AbstractContextManager[None]:
    """Let the sites know the grid of an ``image`` (B, C, H, W)."""
    rows, columns = owner.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    return on_grid((int(rows), int(columns)), tuple(owner.patch_embed.grid_size))


def _whole(value: Any) -> Any:
    if isinstance(value, Tokens):
        return value.restore("last")
    if isinstance(value, dict):
        return {key: _whole(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return value
