"""A block with methods in it: the Site, and the class mixed into the block that hands its runs over.

A block keeps its submodules, names and state-dict keys; its class gains a forward that runs it in two halves around the
methods that act there. State travels from block to block as the argument (``Tokens``); nothing is stored on the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.engine import packed, padding, running
from tokensieve.engine.attending import Attending, Call
from tokensieve.engine.grid import running_grid
from tokensieve.engine.hooks import refuse_block_mask
from tokensieve.engine.reduction import Reduction
from tokensieve.engine.running import SITE
from tokensieve.engine.schedule import Step
from tokensieve.engine.takeover import TakenOver
from tokensieve.engine.turns import Turns
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._family import taken_apart
from tokensieve.families._layout import Grid
from tokensieve.methods._method import Method
from tokensieve.methods._view import BlockSignals
from tokensieve.ops.norm import Norm
from tokensieve.tokens import link
from tokensieve.tokens.form import Form, Map, Share
from tokensieve.tokens.record import Stage
from tokensieve.tokens.restore import returning, visible
from tokensieve.tokens.several import Several
from tokensieve.tokens.stand_in import StandIn
from tokensieve.tokens.state import Tokens

BESIDE = "_tokensieve_state"  # the attribute of a tensor out of a tapped block that holds the compact state


@dataclass(frozen=True, eq=False)
class Beside:
    """What a tapped block hands on beside its tensor.

    Attributes:
        tokens: the compact state.
        restored: (B, P + N, C) all tokens, equal to the tensor that was handed on.
        version: of that tensor, which counts changes in place; None where nothing counts them.
    """

    tokens: Tokens | Several
    restored: Tensor
    version: int | None

    def state(self, x: Tensor) -> Tokens | Several:
        """The state for the block behind, given what came there of the tensor that was handed on."""
        waited_for = bool(x._backward_hooks) or x.retains_grad or getattr(x, BESIDE, None) is None
        if not waited_for or not x.requires_grad:
            return self.tokens
        if isinstance(self.tokens, Several):
            raise RefusedError(
                "something waits for the gradient of a tapped block in which images of several sizes are packed: give "
                "the tower images of one size"
            )
        return link.through(self.tokens, self.restored, x)


def version_of(x: Tensor) -> int | None:
    """How often ``x`` was changed in place; None in graphs and inference mode, where nobody counts."""
    return None if torch.compiler.is_compiling() or x.is_inference() else x._version


def beside_of(x: Tensor) -> Beside | None:
    """What lies beside ``x``, the output of a tapped block or what backward hooks have made of it; None where it was
    replaced or changed in place."""
    beside: Beside | None = getattr(x, BESIDE, None)
    if beside is None and torch.is_grad_enabled() and not torch.compiler.is_compiling() and x._base is not None:
        beside = getattr(x._base, BESIDE, None)  # a module's backward hooks wrap what they wait for in a view
    if beside is None or x.shape != beside.restored.shape:
        return None
    if beside.version is not None:
        return beside if beside.version == version_of(x) else None
    counted = not x.is_inference() or not x.is_cpu or torch.compiler.is_compiling()  # comparing would wait for a GPU
    return beside if counted or same(x, beside.restored) else None


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN included."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


class Site(nn.Module):
    """What the methods do at one block. Holds their learned parts and no state of any run.

    Args:
        reduction: of the model.
        block: 0-based number of the block.
        steps: the methods that act here.
    """

    def __init__(self, reduction: Reduction, block: int, steps: Sequence[Step]) -> None:
        super().__init__()
        self.reduction = reduction
        self.block = block
        self.tapped = block in reduction.taps
        self.own: Any = None  # the forward of the block's class when it was taken over; a pickled site has forgotten it
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
        self.settle(replace(self.reduction, methods=tuple(methods)))
        self.turns.take(steps)

    def settle(self, reduction: Reduction) -> None:
        """Be part of a ``reduction`` of the same methods from now on."""
        self.reduction = self.turns.reduction = reduction

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "own": None}  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return ", ".join(f"{step.method.point}: {step.method}" for step in self.turns.steps)

    def run(self, block: SievedBlock, x: Tensor | StandIn, kwargs: dict[str, Any]) -> Tensor | StandIn:
        """Run ``block`` on ``x``: a plain tensor at the first site, the state of what went before behind it."""
        if kwargs:
            refuse_block_mask(kwargs, self.reduction.family.biased)
        running.at_block(self.block)
        if block._backward_hooks or block._backward_pre_hooks:
            self._need_tensors()
        state = self.state_of(block, x, kwargs)
        if isinstance(state, Tokens):
            return self._hand_on(self._run(block, state, kwargs))
        # Images of several sizes each lose their own number of tokens; where nothing happens the row stays one.
        entered = [self._enter(block, part, kwargs) for part in state.parts]
        if all(call.plain and not part.version for part, call in entered):
            out = block.dense(state.joined([part.x for part, _ in entered]), **kwargs)
            calls = iter(entered)
            return self._hand_on(state.ran(out, lambda part, x: self._ran(part, x, next(calls)[1])))
        behind = tuple(self._run_parts(block, part, call) for part, call in entered)
        return self._hand_on(replace(state, parts=behind))

    def _run(self, block: SievedBlock, tokens: Tokens, kwargs: dict[str, Any]) -> Tokens:
        """The state behind ``block``."""
        tokens, call = self._enter(block, tokens, kwargs)
        if not call.plain:
            return self._run_parts(block, tokens, call)
        if tokens.form is None:
            given = call.kwargs if tokens.version else kwargs
            return self._ran(tokens, block.dense(tokens.x, **given), call)
        out = block.dense(tokens.form.given(tokens.x), **kwargs)
        return self._ran(tokens, tokens.form.taken(out), call)

    def _enter(self, block: SievedBlock, tokens: Tokens, kwargs: dict[str, Any]) -> tuple[Tokens, Call]:
        """Methods act before the block; then its attention is laid out: positions, sizes and padding of the tokens."""
        if self.turns.at["before"]:
            tokens = self.turns.act(tokens, "before", block.training)
        return tokens, self.attending.call(tokens, block, kwargs)

    def _run_parts(self, block: SievedBlock, tokens: Tokens, call: Call) -> Tokens:
        """The state behind the block, which runs in its halves with the methods around them."""
        training, turns = block.training, self.turns
        # 1. The tokens attend.
        entered = tokens
        tokens, signals = self.attending.run(tokens, block, call)
        if turns.watchers and signals is not None:
            tokens = turns.watch(tokens, entered, signals)
        # 2. Methods act in the middle.
        if turns.at["middle"]:
            tokens = turns.act(tokens, "middle", training, signals, self._next_norm(block, tokens))
        # 3. Tokens that skipped the attention alone return.
        tokens, signals = self._return(tokens, signals)
        # 4. The MLP runs.
        tokens = self._ran(tokens, self._mlp(block, tokens), call)
        # 5. Methods act after the block.
        return turns.act(tokens, "after", training, signals) if turns.at["after"] else tokens

    def _need_tensors(self) -> None:
        """Backward hooks on the block see gradients of tensors only.

        Raises:
            RefusedError: what goes into the block or leaves it is a state.
        """
        read = {self.block - 1} if self.block > self.reduction.first else set()
        read |= set() if self.last else {self.block}
        if torch.is_grad_enabled() and not read <= self.reduction.taps:
            raise RefusedError(
                f"a backward hook waits at block {self.block}, where a model with reduced tokens hands on a compact "
                f"state: with ts.apply(..., taps={sorted(read | self.reduction.taps)}) these are plain tensors with "
                "gradients"
            )

    def state_of(self, block: nn.Module, x: Tensor | StandIn, kwargs: dict[str, Any]) -> Tokens | Several:
        """The state that the block before handed on, or a first one from the tokens out of a dense block.

        Raises:
            RefusedError: the block before was to hand on a state and did not, or is another one than it was.
        """
        if isinstance(x, (Tokens, Several)):
            stages = (x if isinstance(x, Tokens) else x.parts[0]).stages
            if stages and stages[-1].block != self.block - 1:
                raise RefusedError(
                    f"block {self.block} ran behind block {stages[-1].block}: the list of blocks was changed after "
                    "ts.apply; call ts.remove(model), change it, and apply again"
                )
            if not torch.compiler.is_compiling() and x.written():
                raise TokensieveError(x.cannot("be changed in place, also in parts"))
            return x
        assert isinstance(x, Tensor)
        beside = beside_of(x)
        if beside is not None:
            return beside.state(x)
        before = self.block - 1
        if before >= self.reduction.first and before not in self.reduction.taps:
            raise RefusedError(running.not_asked(before))
        family, mask = self.reduction.family, None
        forms: Sequence[Share] = ()
        if family.packed:
            forms = packed.forms(x)
        elif not family.biased and not torch.compiler.is_compiling():
            mask = padding.mask_in(kwargs)
            forms = () if mask is None else padding.forms(mask, x, self.reduction.layout.prefix)
        if not forms or (len(forms) == 1 and family.packed):
            return self._first(x, forms[0] if forms else family.form(block, x))
        return Several(tuple(self._first(x, form) for form in forms), x)

    def _first(self, x: Tensor, form: Form | None) -> Tokens:
        """The state in which nothing has happened yet to ``x``, as the model has it."""
        layout = self.reduction.layout
        if form is not None:
            x = form.taken(x)
        count = x.shape[1] - layout.prefix
        running = running_grid()
        known: Grid | None = layout.grid if running is None else running
        if isinstance(form, Map):
            known = form.grid
        elif isinstance(form, Share) or not known or math.prod(known) != count:
            known = None
        # Where nothing will happen, the tokens stay as they lie.
        behind = layout.behind if layout.behind and self.reduction.acts(count) else 0
        return Tokens.start(x, layout.prefix, self.reduction.fill, known, behind, form)

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

    def _ran(self, tokens: Tokens, x: Tensor, call: Call) -> Tokens:
        """The state after the block's MLP, which gave ``x``."""
        table = tokens.table
        windows = call.kwargs.get("windows"), call.kwargs.get("beyond")
        stage = Stage(self.block, call.attended, x.shape[1], table.alive, call.seen, table.mask, call.saved, *windows)
        tokens = tokens.changed(x=x, stages=(*tokens.stages, stage))
        for method in self.followers:
            tokens = method.behind(tokens, self.block, self.reduction.layout, self.training)
        return tokens

    def _due(self, tokens: Tokens) -> Tokens:
        """The state with those back that are due before the next block: the caller of the blocks holds what one hands
        to the next."""
        if tokens.back.parked or tokens.back.outer is not None:
            return returning(tokens, self.block + 1)
        return tokens

    def _hand_on(self, state: Tokens | Several) -> Tensor | StandIn:
        due = state.map(self._due) if isinstance(state, Several) else self._due(state)
        out: Tensor | StandIn = self(due)  # a module's call, so that hooks on the site see it
        return out

    def forward(self, state: Tokens | Several) -> Tensor | StandIn:
        """What leaves the block: the state, or after the last block and where it is tapped every original token."""
        if self.last:
            return state.restore()
        if not self.tapped:
            return state
        restored = state.restore("last")
        # Another tensor than the state may hold; with gradients one of its own, so that they can be told apart.
        wanted = restored.requires_grad and torch.is_grad_enabled()
        whole = restored.clone() if wanted else restored.view_as(restored)
        if whole.is_inference() and whole.is_cpu and not torch.compiler.is_compiling():
            whole = restored.clone()  # nobody counts changes there, so that values are compared
        setattr(whole, BESIDE, Beside(state, restored, version_of(whole)))
        return whole

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A dense checkpoint knows nothing of this site: the learned parts keep the values they have.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SievedBlock(TakenOver):
    """Mixed into a block's class while the block has a Site. The block's own forward stays reachable as ``dense``."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if SITE not in self._modules:  # somebody has kept this method, and the methods were removed since then
            return type(self).forward(self, *args, **kwargs)
        site: Site = self._modules[SITE]  # type: ignore[assignment]
        family = site.reduction.family
        x, others, kwargs = taken_apart(args, kwargs)
        return family.closed(site.run(self, x, family.keywords(self, others, kwargs)))

    def own(self) -> Any:
        """The function that is the block's original forward."""
        own: Any = super().forward
        return own.__func__

    def dense(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The tokens (B, L, C) out of the block's original forward."""
        site: Site = self._modules[SITE]  # type: ignore[assignment]
        return site.reduction.family.opened(super().forward(x, **kwargs))  # type: ignore[misc]
