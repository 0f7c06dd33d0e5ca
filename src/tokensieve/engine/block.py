"""A block with methods in it: the Site, and the classes mixed into the block and into the module that owns the blocks.

A block keeps its submodules, names and state-dict keys; its class gains a forward that runs it in two halves around the
methods that act there. State travels from block to block as the argument (``Tokens``); nothing is stored on the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokensieve.attention.kernel import attends_faster, key_bias
from tokensieve.attention.packing import Packing, packing_of
from tokensieve.attention.shared import Maps, SharingTap
from tokensieve.attention.signals import first_keys, spread_shares
from tokensieve.attention.tap import Tap
from tokensieve.engine import checks as checking
from tokensieve.engine.grid import running_grid
from tokensieve.engine.schedule import Step
from tokensieve.engine.takeover import TakenOver
from tokensieve.errors import RefusedError
from tokensieve.families._family import Family
from tokensieve.families._layout import Layout
from tokensieve.methods._method import POINTS, Method, Point
from tokensieve.methods._view import BlockSignals, Signal, View
from tokensieve.ops.norm import Norm
from tokensieve.tokens import hide as masking
from tokensieve.tokens import state as algebra
from tokensieve.tokens.record import Stage
from tokensieve.tokens.restore import visible
from tokensieve.tokens.state import Fill, Tokens

if TYPE_CHECKING:
    from tokensieve.engine.counts import Rounding

SITE = "tokensieve"  # the name of the child module that a block with sites carries
BESIDE = "_tokensieve_state"  # the attribute of a tensor out of a tapped block that holds the compact state


def _refuse_masks(kwargs: dict[str, Any]) -> None:
    """Take masks that say nothing out of a block's arguments, and refuse those that do."""
    masks = [kwargs.pop(name, None) for name in ("attn_mask", "attention_mask")]
    if any(mask is not None for mask in masks) or kwargs.pop("is_causal", False):
        raise RefusedError(
            "a model with reduced tokens takes no attn_mask, attention_mask or is_causal: its tokens are not where "
            "the mask expects them; ts.remove(model) gives the dense model back"
        )


class Site(nn.Module):
    """What the methods do at one block. Holds their learned parts and no state of any run."""

    def __init__(
        self,
        family: Family,
        layout: Layout,
        block: int,
        steps: Sequence[Step],
        methods: tuple[Method, ...],
        fill: Fill,
        rounding: Rounding | None = None,
        masked: bool = False,
        tapped: bool = False,
    ) -> None:
        super().__init__()
        self.family = family
        self.layout = layout
        self.block = block
        self.take(steps)
        self.methods = methods
        self.fill: Fill = fill
        self.rounding = rounding
        self.masked = masked
        self.tapped = tapped
        self.followers = tuple(m for m in methods if type(m).behind is not Method.behind)
        self.log_size = any(m.log_size_attention for m in methods)
        self.learned = nn.ModuleDict()
        for step in self.steps:
            part = step.method.module(layout)
            if part is not None:
                self.learned[step.key] = part
        self.learns = frozenset(self.learned.keys())
        self.needs = frozenset[Signal]().union(*self.declared.values())
        self.borrows, self.lends = (
            any(number in m.sharing(layout.depth) for m in methods) for number in (block, block + 1)
        )

    def take(self, steps: Sequence[Step]) -> None:
        """Act by ``steps`` from now on."""
        self.steps = tuple(steps)
        self.asked: dict[tuple[str, int, tuple[int, int] | None], int] = {}
        self.declared = {s.key: s.method.needs(self.layout) for s in self.steps}
        self.returns = {s.key: s.method.returns_at(s.ordinal, self.layout) for s in self.steps}
        self.steps_at = {point: tuple(s for s in self.steps if s.method.point == point) for point in POINTS}

    def extra_repr(self) -> str:
        return ", ".join(f"{step.method.point}: {step.method}" for step in self.steps)

    def run(self, block: SievedBlock, x: Tensor | Tokens, kwargs: dict[str, Any]) -> Tensor | Tokens:
        """Run ``block`` on ``x``: a plain (B, L, C) tensor at the first site, ``Tokens`` behind it."""
        if kwargs:
            _refuse_masks(kwargs)
        tokens = self.state_of(x)
        if self.steps_at["before"]:
            tokens = self._act(tokens, "before", None, block.training)
        packs = True
        if tokens.version and kwargs:
            placed = self.family.reindex(kwargs, tokens.rep, tokens.prefix)
            packs, kwargs = placed is kwargs, placed  # rotary angles lie as the padded tokens do
        attended, seen = tokens.x.shape[1], tokens.mask
        bias = self._key_bias(tokens)
        own = attends_faster(tokens.x) and (tokens.version > 0 or self._acts(visible(tokens)))
        plain = bias is None and tokens.shares is None and not (own or self.borrows or self.lends)
        if plain and not self.steps and not any(entry.after_attention for entry in tokens.parked):
            return self._finish(self._stage(tokens, block.dense(tokens.x, **kwargs), attended, seen, 0, block.training))
        tokens, signals, saved = self._attend(tokens, block, bias, own, packs, kwargs)
        behind = self.steps_at["after"]
        observed = self._observe(visible(tokens), signals) if behind else {}
        if self.steps_at["middle"]:
            tokens = self._act(tokens, "middle", signals, block.training, norm=self._next_norm(block, tokens))
        before = tokens
        tokens = algebra.returning(tokens, self.block, after_attention=True)
        if signals is not None and tokens is not before:
            signals.follow_return(visible(before), visible(tokens))
        # Lets go of queries, keys and values before the MLP where nobody reads them behind it.
        if not behind:
            signals = None
        elif signals is not None and all(step.key in observed for step in behind if self.declared[step.key]):
            signals.attended = None
        tokens = self._stage(tokens, self._mlp(block, tokens), attended, seen, saved, block.training)
        return self._finish(self._act(tokens, "after", signals, block.training, observed) if behind else tokens)

    def state_of(self, x: Tensor | Tokens) -> Tokens:
        """The state that the block before handed on, or a first one from a tensor (B, L, C) out of a dense block."""
        if isinstance(x, Tokens):
            return x
        beside: Tokens | None = getattr(x, BESIDE, None)
        if beside is not None:
            return beside
        patches = x.shape[1] - self.layout.prefix
        grid = running_grid() or self.layout.grid
        known = grid if grid[0] * grid[1] == patches else None
        return Tokens.start(x, self.layout.prefix, self.fill, known)

    def _key_bias(self, tokens: Tokens) -> Tensor | None:
        """What sizes, padding and masks put on the logits of each key, see ``attention.key_bias``."""
        size = tokens.size if self.log_size else None
        if tokens.alive is None and tokens.mask is None:
            if size is None:
                return None
            if tokens.size_bias is not None:
                return tokens.size_bias
        return key_bias(tokens.prefix, size, tokens.alive, tokens.mask)

    def _acts(self, tokens: Tokens) -> bool:
        """Whether a method will remove tokens in the middle of this block.

        From the first such block on the answer is not the dense model's bit for bit: a faster attention may give it.
        """
        middle = self.steps_at["middle"]
        return any(step.method.ragged or self._budget(step, tokens) < tokens.count for step in middle)

    def _observe(self, tokens: Tokens, signals: BlockSignals | None) -> dict[str, Tensor]:
        """What methods that act after the block keep of its attention, by their key."""
        observed: dict[str, Tensor] = {}
        if signals is None or signals.attended is None:
            return observed
        alone = all(step.method.point == "after" for step in self.steps)
        for step in self.steps:
            idle = alone and not step.method.ragged and self._budget(step, tokens) == tokens.count
            if step.method.point == "after" and not idle:
                kept = step.method.observe(signals.attended, self._part(step))
                if kept is not None:
                    observed[step.key] = kept
        return observed

    def _part(self, step: Step) -> nn.Module | None:
        return self.learned[step.key] if step.key in self.learns else None

    def _attend(
        self, tokens: Tokens, block: SievedBlock, bias: Tensor | None, own: bool, packs: bool, kwargs: dict[str, Any]
    ) -> tuple[Tokens, BlockSignals | None, int]:
        """The attention half of the block, its signals where a method here reads any, and the MACs saved per token."""
        shares_maps = self.borrows or self.lends
        if not (self.needs or own or shares_maps) and bias is None and tokens.shares is None:
            return tokens.changed(x=self.family.attention(block, tokens.x, **kwargs)), None, 0
        tap = self._tap(tokens, block, bias, own)
        if packs and not shares_maps:
            tap.packing, tap.sized = self._packing(tokens), self.log_size
        x = tokens.x if tap.packing is None else tap.packing.pack(tokens.x)
        y = self.family.tapped(block, x, tap, **kwargs)
        tokens = tokens.changed(x=y if tap.packing is None else tap.packing.unpack(y))
        if shares_maps:
            lent = Maps(tuple((call[0], call[1]) for call in tap.calls), tokens.version) if self.lends else None
            tokens = tokens.changed(maps=lent)
        saved = tap.saved if isinstance(tap, SharingTap) else 0
        if tokens.shares is not None:
            with torch.no_grad():
                spread = spread_shares(tap.attended(), tokens.shares.x)
            tokens = tokens.changed(shares=tokens.shares.changed(x=spread))
        if not self.needs:
            return tokens, None, saved
        attended = tap.attended()
        if tokens.hidden:
            attended = first_keys(attended, tokens.x.shape[1] - tokens.hidden)
        return tokens, BlockSignals(attended, visible(tokens).alive), saved

    def _next_norm(self, block: SievedBlock, tokens: Tokens) -> Norm | None:
        """The norm that a move in the middle of the block may run on its way, where that is worth it.

        On a CPU it was measured and is not: what a row costs there are its two sums, not its way to memory.
        """
        return self.family.mlp_norm(block) if tokens.x.is_cuda else None

    def _mlp(self, block: SievedBlock, tokens: Tokens) -> Tensor:
        packing = self._packing(tokens)
        if packing is None and tokens.normed is not None:
            return self.family.mlp_behind_norm(block, tokens.x, tokens.normed)
        if packing is None:
            return self.family.mlp(block, tokens.x)
        return packing.unpack(self.family.mlp(block, packing.pack(tokens.x)))

    def _packing(self, tokens: Tokens) -> Packing | None:
        if tokens.alive is None or tokens.hidden:
            return None
        return packing_of(tokens.alive, tokens.prefix)

    def _tap(self, tokens: Tokens, block: SievedBlock, bias: Tensor | None, own: bool) -> Tap:
        maps = tokens.maps
        if self.borrows and maps is not None and maps.version == tokens.version:
            return SharingTap(maps, block, bias, own, self.needs)
        return Tap(bias, own, self.needs)

    def _stage(
        self, tokens: Tokens, x: Tensor, attended: int, seen: Tensor | None, saved: int, training: bool
    ) -> Tokens:
        """The state after the block's MLP, which gave ``x``."""
        stage = Stage(self.block, attended, x.shape[1], tokens.alive, seen, tokens.mask, saved)
        tokens = tokens.changed(x=x, stages=(*tokens.stages, stage))
        for method in self.followers:
            tokens = method.behind(tokens, self.block, self.layout, training)
        return tokens

    def _finish(self, tokens: Tokens) -> Tensor | Tokens:
        # Those due before the next block return here: whoever calls the blocks holds what one hands to the next.
        tokens = algebra.returning(tokens, self.block + 1)
        out: Tensor | Tokens = self(tokens)  # a module's call, so that hooks on the site see it
        return out

    def forward(self, tokens: Tokens) -> Tensor | Tokens:
        """What leaves the block: the state, or after the last block and where it is tapped every original token."""
        if self.block == self.layout.depth - 1:
            return tokens.restore()
        if not self.tapped:
            return tokens
        whole = tokens.restore("last")
        whole = whole.view_as(whole)  # an alias, so that the state may hold the tensor itself
        setattr(whole, BESIDE, tokens)
        return whole

    def _act(
        self,
        tokens: Tokens,
        point: Point,
        signals: BlockSignals | None,
        training: bool,
        observed: Mapping[str, Tensor] | None = None,
        norm: Norm | None = None,
    ) -> Tokens:
        for step in self.steps_at[point]:
            method = step.method
            shown = visible(tokens)
            if method.undivided:
                checking.check_grid(method, shown, self.layout.grid)
            keep = self._budget(step, shown)
            if keep == shown.count and not method.ragged:
                continue
            part, remembered = self._part(step), observed.get(step.key) if observed else None
            view = View(
                *(shown, method, self.layout, self.block, step.ordinal, keep),
                *(self.declared[step.key], part, training, signals, remembered),
            )
            decision = method.assign(view)
            checking.check_decision(decision, keep, self.returns[step.key], method, self.block, self.rounding)
            if training and masking.stands_in(decision) and (self.masked or decision.soft is not None):
                tokens = masking.hide(tokens, decision, self.block, point, step.label)
            else:
                whole = masking.among_hidden(tokens, decision)
                last = step is self.steps_at[point][-1]
                tokens = algebra.apply(tokens, whole, self.block, point, step.label, norm if last else None)
            if view.losses or view.answers:
                tokens = tokens.changed(losses=(*tokens.losses, *view.losses), answers=(*tokens.answers, *view.answers))
            if signals is not None:
                signals.follow(decision)
        return tokens

    def _budget(self, step: Step, tokens: Tokens) -> int:
        """How many patch tokens the schedule leaves at this step: the method's own number, or that number rounded."""
        if self.rounding is not None:
            return min(tokens.count, self.rounding.left(self.block, step, tokens.originals))
        if torch.compiler.is_dynamo_compiling():
            return self._remaining(step, tokens)
        question = (step.key, tokens.count, tokens.grid)
        if question not in self.asked:  # an answer never changes, and asking takes longer than a kernel
            self.asked[question] = self._remaining(step, tokens)
        return self.asked[question]

    def _remaining(self, step: Step, tokens: Tokens) -> int:
        layout = self.layout
        if step.method.undivided and tokens.grid is not None and tokens.grid != layout.grid:
            layout = replace(layout, grid=tokens.grid)
        return step.method.remaining(tokens.count, step.ordinal, layout)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A dense checkpoint knows nothing of this site: the learned parts keep the values they have.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SievedBlock(TakenOver):
    """Mixed into a block's class while the block has a Site. The block's own forward stays reachable as ``dense``."""

    def forward(self, x: Tensor | Tokens, *args: Any, **kwargs: Any) -> Tensor | Tokens:
        site: Site = self._modules[SITE]  # type: ignore[assignment]
        return site.run(self, x, site.family.keywords(args, kwargs))

    def dense(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The block's original forward."""
        return super().forward(x, **kwargs)  # type: ignore[misc, no-any-return]
