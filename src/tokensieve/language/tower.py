"""The tower listened to: a method that removes nothing and notes what prefix methods want to know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Layout
from tokensieve.language.running import SIGNALS
from tokensieve.methods._method import Method
from tokensieve.methods._view import Signal, View, importance_signal
from tokensieve.methods.language._prefix import TowerSignals
from tokensieve.ops.rows import take_rows
from tokensieve.tokens.decision import Decision
from tokensieve.tokens.form import InRow


@dataclass(frozen=True, kw_only=True)
class Listening(Method):
    """Notes importance and keys of some blocks, for every patch of the picture; where tokens were merged before, those
    of the token that a patch is in, and of one that is gone nothing (importance 0)."""

    heard: tuple[int, ...] = ()

    name = "listening"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return ()

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout), "keys"})

    def watches(self, depth: int) -> frozenset[int]:
        return frozenset(block % depth for block in self.heard)

    def watch(self, view: View) -> None:
        signals = SIGNALS.get()
        if signals is None:
            return
        group, form, seen = view.tokens.group, view.tokens.form, signals.get(view.block)
        here = group.clamp(min=0)
        importance = view.importance.float().gather(1, here).masked_fill(group < 0, 0).detach()
        keys = take_rows(view.keys.float(), here).detach()
        if isinstance(form, InRow):
            signals[view.block] = _in_row(seen, form, importance, keys)
            return
        if seen is not None:
            raise RefusedError(
                "the tower sees pictures of several sizes at once, padded to one, whose attention no prefix method "
                "reads: give one picture at a time, or choose a method that reads features alone, divprune for one"
            )
        signals[view.block] = TowerSignals(importance, keys, view.layout.class_token)

    def assign(self, view: View) -> Decision:
        raise AssertionError("it acts nowhere")


def _in_row(seen: TowerSignals | None, form: InRow, importance: Tensor, keys: Tensor) -> TowerSignals:
    """Signals with one row, of the patches of all images as a tower has them that packs images: those of one size,
    (B, N) and (B, N, D), join what was ``seen`` of the others."""
    length = form.shape[-2]
    if seen is None or bool(seen.importance[0, list(form.starts)].isfinite().any()):  # of another call of the tower
        nothing = importance.new_full((1, length), torch.nan)
        seen = TowerSignals(nothing, keys.new_zeros(1, length, keys.shape[2]), class_token=False)
    form.put(seen.importance.unsqueeze(2), importance.unsqueeze(2))
    form.put(seen.keys, keys)
    return seen


def whole_block(block: int, layout: Layout) -> int:
    """The block nearest to ``block`` in which an image attends to itself as a whole; of two the earlier one.

    Raises:
        RefusedError: there is none.
    """
    whole = [number for number in range(layout.depth) if number not in layout.windowed]
    if not whole:
        raise RefusedError(
            "no block of the tower lets an image attend to itself as a whole, so that none says which patches are "
            "attended to: choose a method that reads features alone, divprune for one"
        )
    return min(whole, key=lambda number: abs(number - block))
