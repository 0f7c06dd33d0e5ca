"""A block with methods in it: the Site, and the class mixed into the block that hands its runs over.

A block keeps its submodules, names and state-dict keys; its class gains a forward that runs it in two halves around the
methods that act there. State travels from block to block as the argument (``Tokens``); nothing is stored on the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokensieve.engine.attending import Attending, Call
from tokensieve.engine.grid import running_grid
from tokensieve.engine.hooks import refuse_block_mask
from tokensieve.engine.reduction import Reduction
from tokensieve.engine.schedule import Step
from tokensieve.engine.takeover import TakenOver
from tokensieve.engine.turns import Turns
from tokensieve.methods._method import Method
from tokensieve.methods._view import BlockSignals
from tokensieve.ops.norm import Norm
from tokensieve.tokens.record import Stage
from tokensieve.tokens.restore import returning, visible
from tokensieve.tokens.state import Tokens

SITE = "tokensieve"  # the name of the child module that a block with sites carries
BESIDE = "_tokensieve_state"  # the attribute of a tensor out of a tapped block that holds the compact state


class Site(nn.Module):
    """What the methods do at one block. Holds their learned parts and no state of any run.

    Args:
        reduction: of the model.
        block: 0-based number of the block.
        steps: the methods that act here.
        tapped: whether the block hands on a plain tensor with every token.
    """

    def __init__(self, reduction: Reduction, block: int, steps: Sequence[Step], tapped: bool = False) -> None:
        super().__init__()
        self.reduction = reduction
        self.block = block
        self.tapped = tapped
        self.last = block == reduction.layout.depth - 1
        self.learned = nn.ModuleDict()
        for step in steps:
            part = step.method.module(reduction.layout)
            if part is not None:
                self.learned[step.key] = part
        self.followers = tuple(m for m in reduction.methods if type(m).behind is not Method.behind)
        self.turns = Turns(reduction, block, self.learned)
        self.turns.take(steps)
        self.attending = Attending(reduction, block, self.turns)

    def take(self, steps: Sequence[Step], methods: Sequence[Method]) -> None:
        """Act by ``steps`` of a composition of the same ``methods`` with other options from now on."""
        self.reduction = replace(self.reduction, methods=tuple(methods))
        self.turns.reduction = self.reduction
        self.turns.take(steps)

    def extra_repr(self) -> str:
        return ", ".join(f"{step.method.point}: {step.method}" for step in self.turns.steps)

    def run(self, block: SievedBlock, x: Tensor | Tokens, kwargs: dict[str, Any]) -> Tensor | Tokens:
        """Run ``block`` on ``x``: a plain (B, L, C) tensor at the first site, ``Tokens`` behind it."""
        if kwargs:
            refuse_block_mask(kwargs)
        training, turns = block.training, self.turns
        # 1. The state is taken in from the block before.
        tokens = self.state_of(x)
        # 2. Methods act before the block.
        if turns.at["before"]:
            tokens = turns.act(tokens, "before", training)
        # 3. The attention is laid out: positions, sizes and padding of the tokens that are there.
        call = self.attending.call(tokens, kwargs)
        if call.plain:
            return self._hand_on(self._ran(tokens, block.dense(tokens.x, **call.kwargs), call, training))
        # 4. The tokens attend.
        tokens, signals = self.attending.run(tokens, block, call)
        # 5. Methods act in the middle.
        if turns.at["middle"]:
            tokens = turns.act(tokens, "middle", training, signals, self._next_norm(block, tokens))
        # 6. Tokens that skipped the attention alone return.
        tokens, signals = self._return(tokens, signals)
        # 7. The MLP runs.
        tokens = self._ran(tokens, self._mlp(block, tokens), call, training)
        # 8. Methods act after the block, and the state is handed on.
        return self._hand_on(turns.act(tokens, "after", training, signals) if turns.at["after"] else tokens)

    def state_of(self, x: Tensor | Tokens) -> Tokens:
        """The state that the block before handed on, or a first one from a tensor (B, L, C) out of a dense block."""
        if isinstance(x, Tokens):
            return x
        beside: Tokens | None = getattr(x, BESIDE, None)
        if beside is not None:
            return beside
        layout = self.reduction.layout
        grid = running_grid() or layout.grid
        known = grid if math.prod(grid) == x.shape[1] - layout.prefix else None
        return Tokens.start(x, layout.prefix, self.reduction.fill, known)

    def _next_norm(self, block: SievedBlock, tokens: Tokens) -> Norm | None:
        """The norm that a move in the middle of the block may run on its way, where that is worth it.

        On a CPU it was measured and is not: what a row costs there are its two sums, not its way to memory.
        """
        return self.reduction.family.mlp_norm(block) if tokens.x.is_cuda else None

    def _return(self, tokens: Tokens, signals: BlockSignals | None) -> tuple[Tokens, BlockSignals | None]:
        """Bring back the tokens that are due behind the attention; drop the attention where it is not read any more."""
        before = tokens
        if tokens.back.parked:
            tokens = returning(tokens, self.block, after_attention=True)
        if signals is None or not self.turns.at["after"]:
            return tokens, None
        if tokens is not before:
            signals.follow_return(visible(before), visible(tokens))
        if not self.turns.reads_behind(signals):
            signals.attended = None
        return tokens, signals

    def _mlp(self, block: SievedBlock, tokens: Tokens) -> Tensor:
        """The MLP half of the block, (B, L, C)."""
        family = self.reduction.family
        if tokens.normed is not None:
            return family.mlp_behind_norm(block, tokens.x, tokens.normed)
        if tokens.table.alive is None:
            return family.mlp(block, tokens.x)
        rows = self.attending.rows(tokens)
        return rows.unpack(family.mlp(block, rows.pack(tokens.x)))

    def _ran(self, tokens: Tokens, x: Tensor, call: Call, training: bool) -> Tokens:
        """The state after the block's MLP, which gave ``x``."""
        table = tokens.table
        stage = Stage(self.block, call.attended, x.shape[1], table.alive, call.seen, table.mask, call.saved)
        tokens = tokens.changed(x=x, stages=(*tokens.stages, stage))
        for method in self.followers:
            tokens = method.behind(tokens, self.block, self.reduction.layout, training)
        return tokens

    def _hand_on(self, tokens: Tokens) -> Tensor | Tokens:
        # Those due before the next block return here: the caller of the blocks holds what one hands to the next.
        if tokens.back.parked:
            tokens = returning(tokens, self.block + 1)
        out: Tensor | Tokens = self(tokens)  # a module's call, so that hooks on the site see it
        return out

    def forward(self, tokens: Tokens) -> Tensor | Tokens:
        """What leaves the block: the state, or after the last block and where it is tapped every original token."""
        if self.last:
            return tokens.restore()
        if not self.tapped:
            return tokens
        whole = tokens.restore("last")
        whole = whole.view_as(whole)  # an alias, so that the state may hold the tensor itself
        setattr(whole, BESIDE, tokens)
        return whole

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A dense checkpoint knows nothing of this site: the learned parts keep the values they have.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SievedBlock(TakenOver):
    """Mixed into a block's class while the block has a Site. The block's own forward stays reachable as ``dense``."""

    def forward(self, x: Tensor | Tokens, *args: Any, **kwargs: Any) -> Tensor | Tokens:
        site: Site = self._modules[SITE]  # type: ignore[assignment]
        return site.run(self, x, site.reduction.family.keywords(args, kwargs))

    def dense(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The block's original forward."""
        return super().forward(x, **kwargs)  # type: ignore[misc, no-any-return]
