"""The turns of the methods at one block: each sees the tokens, decides, and the state follows its decision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tokensieve.engine import checks
from tokensieve.engine.reduction import Reduction
from tokensieve.engine.schedule import Step
from tokensieve.families._layout import Layout
from tokensieve.methods import _added as added
from tokensieve.methods._method import POINTS, Point
from tokensieve.methods._view import BlockSignals, Signal, View
from tokensieve.ops.norm import Norm
from tokensieve.tokens import algebra
from tokensieve.tokens import hide as hiding
from tokensieve.tokens.restore import visible
from tokensieve.tokens.state import Tokens


class Turns:
    """Which methods act at one block, and what becomes of the state when they do. Holds nothing of any run.

    Args:
        reduction: of the model.
        block: 0-based number of the block.
        learned: the learned parts of the methods, by the key of their step.
    """

    def __init__(self, reduction: Reduction, block: int, learned: nn.ModuleDict) -> None:
        self.reduction = reduction
        self.block = block
        self.learned = learned
        self.learns = frozenset(learned.keys())

    def take(self, steps: Sequence[Step]) -> None:
        """Act by ``steps`` from now on."""
        layout = self.reduction.layout
        self.steps = tuple(steps)
        self.asked: dict[tuple[str, int, int, tuple[int, ...] | None], int] = {}
        self.declared = {s.key: s.method.needs(layout) for s in self.steps}
        self.returns = {s.key: s.method.returns_at(s.ordinal, layout) for s in self.steps}
        self.at = {point: tuple(s for s in self.steps if s.method.point == point) for point in POINTS}
        depth = layout.depth
        self.watchers = tuple(m for m in self.reduction.methods if self.block in m.watches(depth))
        self.needs = frozenset[Signal]().union(*self.declared.values(), *(m.needs(layout) for m in self.watchers))

    def act(
        self,
        tokens: Tokens,
        point: Point,
        training: bool,
        signals: BlockSignals | None = None,
        norm: Norm | None = None,
    ) -> Tokens:
        """The state behind the methods that act at ``point``.

        Args:
            tokens: the state.
            point: of the block.
            training: whether the model is in training mode.
            signals: of the block's attention, where it has run and a method reads any.
            norm: what reads the tokens next, for ``Tokens.normed``.

        Raises:
            TokensieveError: a method does not do what it declared.
        """
        here = self.at[point]
        for step in here:
            method, shown = step.method, visible(tokens) if tokens.hidden else tokens
            if method.undivided:
                checks.check_grid(method, shown, self.reduction.layout.grid)
            keep = self.budget(step, shown)
            if keep == shown.count and not method.ragged:
                continue
            # The method sees the tokens and decides.
            observed = signals.observed.get(step.key) if signals is not None and signals.observed else None
            view = View(
                *(shown, method, self.layout_of(shown), self.block, step.ordinal, keep),
                *(self.declared[step.key], self.part(step), training, signals, observed),
            )
            decision = method.assign(view)
            every = shown.count if training else None
            how = (self.returns[step.key], method, self.block, self.reduction.rounding, every)
            checks.check_decision(decision, keep, *how)
            if view.extras or view.losses or view.answers or view.resized is not None:
                tokens = _with_additions(tokens, view)
            # The state follows: tokens move, or while training hide behind a mask.
            if training and hiding.stands_in(decision) and (self.reduction.masked or decision.soft is not None):
                tokens = hiding.hide(tokens, decision, self.block, point, step.label)
            else:
                whole = hiding.among_hidden(tokens, decision)
                last = norm if step is here[-1] else None
                tokens = algebra.apply(tokens, whole, self.block, point, step.label, last)
            if signals is not None:
                signals.follow(decision)
        return tokens

    def watch(self, tokens: Tokens, entered: Tokens, signals: BlockSignals) -> Tokens:
        """The state behind the attention, with what the methods carry on that watch it; they see what ``entered``."""
        shown = visible(entered) if entered.hidden else entered
        layout = self.layout_of(shown)
        for method in self.watchers:
            where = (self.block, -1, shown.count)
            view = View(shown, method, layout, *where, method.needs(layout), None, False, signals)
            method.watch(view)
            tokens = _with_additions(tokens, view)
        return tokens

    def part(self, step: Step) -> nn.Module | None:
        """The learned part of a step, or None."""
        return self.learned[step.key] if step.key in self.learns else None

    def removes(self, tokens: Tokens) -> bool:
        """Whether a method will remove tokens in the middle of this block.

        From the first such block on the answer is not the dense model's bit for bit: a faster attention may give it.
        """
        return any(step.method.ragged or self.budget(step, tokens) < tokens.count for step in self.at["middle"])

    def acts(self, tokens: Tokens) -> bool:
        """Whether a method will do anything in the middle of this block or behind it."""
        later = (step for point in ("middle", "after") for step in self.at[point])
        return any(step.method.ragged or self.budget(step, tokens) < tokens.count for step in later)

    def observe(self, tokens: Tokens, signals: BlockSignals) -> None:
        """Let the methods that act after the block keep what they want of its attention."""
        assert signals.attended is not None
        alone = len(self.at["after"]) == len(self.steps)
        for step in self.at["after"]:
            idle = alone and not step.method.ragged and self.budget(step, tokens) == tokens.count
            kept = None if idle else step.method.observe(signals.attended, self.part(step))
            if kept is not None:
                signals.observed[step.key] = kept

    def reads_behind(self, signals: BlockSignals) -> bool:
        """Whether a method that acts after the block reads the attention itself, and not what it has kept of it."""
        return any(self.declared[step.key] and step.key not in signals.observed for step in self.at["after"])

    def budget(self, step: Step, tokens: Tokens) -> int:
        """How many patch tokens the schedule leaves at this step: the method's own number, or that number rounded."""
        rounding = self.reduction.rounding
        if rounding is not None:
            return min(tokens.count, rounding.left(self.block, step, tokens.originals))
        if torch.compiler.is_dynamo_compiling():
            return self._remaining(step, tokens)
        question = (step.key, tokens.count, tokens.originals, tokens.grid)
        if question not in self.asked:  # an answer never changes, and asking takes longer than a kernel
            self.asked[question] = self._remaining(step, tokens)
        return self.asked[question]

    def _remaining(self, step: Step, tokens: Tokens) -> int:
        return step.method.remaining(tokens.count, step.ordinal, self.layout_of(tokens))

    def layout_of(self, tokens: Tokens) -> Layout:
        """The layout of the image that runs: shares are shares of its patches."""
        return self.reduction.layout.of(tokens.originals, tokens.grid)


def _with_additions(tokens: Tokens, view: View) -> Tokens:
    """The state with what the method has laid beside the tokens, and added to the loss."""
    for name, extra in view.extras.items():
        if tokens.hidden:  # no method is shown these, and nothing reads what lies beside them
            extra = extra.of(torch.cat([extra.patches, extra.unknown(tokens.hidden)], dim=1))
        tokens = tokens.with_extra(name, extra)
    if view.resized is not None:
        hidden = tokens.sizes[:, tokens.count - tokens.hidden :]
        tokens = tokens.changed(table=tokens.table.changed(size=torch.cat([view.resized, hidden], dim=1)))
    if view.losses or view.answers:
        tokens = added.add(tokens, view.losses, view.answers)
    return tokens
