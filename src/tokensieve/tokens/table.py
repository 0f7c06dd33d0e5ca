"""What every token carries beside its features, in one table: position, size, padding, mask, and what methods add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokensieve.ops.moving import behind_prefix
from tokensieve.ops.rows import take_rows
from tokensieve.tokens.decision import Assignment
from tokensieve.tokens.follow import Joins, follow, lowest
from tokensieve.tokens.node import changed, register
from tokensieve.tokens.soft import SoftAssignment


@dataclass(frozen=True)
class Extra:
    """A value that a method lays beside each token.

    Attributes:
        value: (B, M) or (B, M, D); with a ``prefix`` (B, P + M) or (B, P + M, D).
        joins: what tokens that merge make of it, see ``follow.follow``.
        prefix: P where the prefix tokens carry one too, first in ``value``; else 0. They stay as they are.
    """

    value: Tensor
    joins: Joins = "mean"
    prefix: int = 0

    @property
    def patches(self) -> Tensor:
        """(B, M) or (B, M, D), without the prefix."""
        return self.value[:, self.prefix :] if self.prefix else self.value

    def of(self, patches: Tensor) -> Extra:
        """The same with other values for the patch tokens."""
        whole = torch.cat([self.value[:, : self.prefix], patches], dim=1) if self.prefix else patches
        return Extra(whole, self.joins, self.prefix)

    def unknown(self, count: int) -> Tensor:
        """(B, count) or (B, count, D) for tokens that nothing was laid beside: 0, or where values join by their maximum
        the lowest there is."""
        shape = (self.value.shape[0], count, *self.value.shape[2:])
        return self.value.new_full(shape, lowest(self.value.dtype) if self.joins == "max" else 0)

    def take(self, index: Tensor) -> Extra:
        """That of the patch tokens at ``index`` (B, K)."""
        return Extra(take_rows(self.value, behind_prefix(index, self.prefix)), self.joins, self.prefix)


@dataclass(frozen=True)
class Table:
    """The values of the M patch tokens present.

    Attributes:
        rep: (B, M) int64 in [0, N), the original patch whose position each token carries.
        size: (B, M) how many originals each token stands for; None while every one stands for itself.
        alive: (B, M) bool, which slots hold a token; None when all do.
        mask: (B, M) training-time keep mask; None when there is none.
        extras: by name, what methods laid beside the tokens.
        size_bias: (B, 1, 1, P + M) what ``key_bias`` makes of ``size``, where a kernel had it on its way; else None.
    """

    rep: Tensor
    size: Tensor | None = None
    alive: Tensor | None = None
    mask: Tensor | None = None
    extras: Mapping[str, Extra] = field(default_factory=dict)
    size_bias: Tensor | None = None

    def changed(self, **changes: Any) -> Table:
        """The table with other columns; another ``size`` has no ``size_bias`` unless that is given with it."""
        if "size" in changes and "size_bias" not in changes:
            changes["size_bias"] = None
        return changed(self, **changes)

    def take(self, index: Tensor) -> Table:
        """The rows of the tokens at ``index`` (B, K)."""
        return Table(
            self.rep.gather(1, index),
            _rows(self.size, index),
            _rows(self.alive, index),
            _rows(self.mask, index),
            {name: extra.take(index) for name, extra in self.extras.items()},
        )

    def first(self, count: int) -> Table:
        """The rows of the first ``count`` tokens."""
        return Table(
            self.rep[:, :count],
            None if self.size is None else self.size[:, :count],
            None if self.alive is None else self.alive[:, :count],
            None if self.mask is None else self.mask[:, :count],
            {name: extra.of(extra.patches[:, :count]) for name, extra in self.extras.items()},
        )

    def join(self, assignment: Assignment, rep: Tensor, size: Tensor | None, size_bias: Tensor | None) -> Table:
        """The table behind a hard assignment; positions and sizes come from the kernel that moved the features.

        Args:
            assignment: over the M tokens.
            rep, size, size_bias: of the K new ones.
        """
        keep, alive, mask, extras = assignment.keep, assignment.alive, self.mask, self.extras
        if alive is None and self.alive is not None:
            alive = self.alive.gather(1, keep)
        if mask is not None:
            mask = mask.gather(1, keep)
        if extras:
            joining = assignment.joining is not None
            extras = {
                name: extra.of(follow(extra.patches, assignment, extra.joins)) if joining else extra.take(keep)
                for name, extra in extras.items()
            }
        return changed(self, rep=rep, size=size, alive=alive, mask=mask, extras=extras, size_bias=size_bias)

    def mix(self, soft: SoftAssignment, sizes: Tensor) -> Table:
        """The table behind a soft assignment of tokens that stand for ``sizes`` (B, M); no new one is padding."""
        divided = soft.restore if isinstance(soft.restore, Tensor) else None
        return Table(
            follow(self.rep, soft, "lead"),
            follow(sizes, soft, "sum", divided),
            extras={name: extra.of(follow(extra.patches, soft, extra.joins)) for name, extra in self.extras.items()},
        )


def _rows(column: Tensor | None, index: Tensor) -> Tensor | None:
    return None if column is None else column.gather(1, index)


register(Extra, ("value",))
register(Table, ("rep", "size", "alive", "mask", "extras", "size_bias"))
