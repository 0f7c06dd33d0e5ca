"""The tower listened to: a method that removes nothing and notes what prefix methods want to know."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.errors import RefusedError
from tokensieve.families._layout import Layout
from tokensieve.language.running import SIGNALS
from tokensieve.methods._method import Method
from tokensieve.methods._view import Signal, View, importance_signal
from tokensieve.methods.language._prefix import TowerSignals
from tokensieve.ops.rows import take_rows
from tokensieve.tokens.decision import Decision


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
        if view.block in signals:
            raise RefusedError(
                "the tower sees pictures of several sizes at once, whose attention no prefix method reads yet: give "
                "one picture at a time, or choose a method that reads features alone, divprune for one"
            )
        group = view.tokens.group
        here = group.clamp(min=0)
        importance = view.importance.float().gather(1, here).masked_fill(group < 0, 0)
        keys = take_rows(view.keys.float(), here)
        signals[view.block] = TowerSignals(importance.detach(), keys.detach(), view.layout.class_token)

    def assign(self, view: View) -> Decision:
        raise AssertionError("it acts nowhere")
