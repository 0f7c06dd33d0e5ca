"""Around the blocks: the class of the module that owns them, so that callers get tensors and never ``Tokens``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokensieve.engine import running
from tokensieve.engine.grid import on_grid
from tokensieve.engine.reduction import Reduction, fill_for
from tokensieve.engine.running import SITE
from tokensieve.engine.takeover import TakenOver
from tokensieve.tokens.state import Tokens

REDUCTION = "_tokensieve_reduction"  # the attribute of the owner that holds its reduction


class SievedOwner(TakenOver):
    """Mixed into the class of the module that owns the blocks, so that callers get tensors and never ``Tokens``."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method."""
        reduction = _followed(self)
        blocks = None
        running.begin()
        try:
            with _on_grid_of(self, x, reduction):
                features = super().forward_features(x, *args, **kwargs)  # type: ignore[misc]
            blocks = reduction.family.block_list(self)
            return features
        finally:
            running.end(blocks)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method, with every intermediate restored."""
        running.begin()
        try:
            with _on_grid_of(self, x, _followed(self)):
                return _whole(super().forward_intermediates(x, *args, **kwargs))  # type: ignore[misc]
        finally:
            running.end(None)


def _followed(owner: Any) -> Reduction:
    """The reduction of ``owner``, after its head was changed with another fill for tokens that are gone."""
    reduction: Reduction = vars(owner)[REDUCTION]
    fill = fill_for(reduction.family.pools(owner, owner)) if reduction.follows_head else reduction.fill
    if fill != reduction.fill:
        vars(owner)[REDUCTION] = reduction = replace(reduction, fill=fill)
        for block in reduction.family.block_list(owner):
            site: Any = block._modules.get(SITE)
            if site is not None:
                site.settle(replace(site.reduction, fill=fill))
    return reduction


def _on_grid_of(owner: Any, image: Tensor, reduction: Reduction) -> AbstractContextManager[None]:
    """Let the sites know the grid of an ``image`` (B, C, H, W)."""
    rows, columns = owner.patch_embed.dynamic_feat_size(tuple(image.shape[-2:]))
    return on_grid((int(rows), int(columns)), reduction.layout.grid)


def _whole(value: Any) -> Any:
    if isinstance(value, Tokens):
        return value.restore("last")
    if isinstance(value, dict):
        return {key: _whole(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return value
