"""What a method gets to see at a site: the patch tokens present and the signals it declared, computed when read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from tokensieve.attention import signals as attention
from tokensieve.attention.signals import Attended
from tokensieve.errors import TokensieveError
from tokensieve.families._layout import Grid
from tokensieve.families._layout import Layout as Layout
from tokensieve.methods._added import Answer, Loss
from tokensieve.ops.rows import head_mean, take_rows
from tokensieve.tokens.decision import Assignment, Decision
from tokensieve.tokens.follow import Joins, follow
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.tokens.state import Tokens
from tokensieve.tokens.table import Extra

if TYPE_CHECKING:
    from tokensieve.methods._method import Method

Signal = Literal["inputs", "queries", "keys", "values", "cls_row", "received", "logits", "outputs"]
SIGNALS: dict[Signal, str] = {
    "inputs": "what the projections of this block's attention are given: its tokens behind the first norm",
    "queries": "queries of this block's attention, after norms and rotary embedding",
    "keys": "keys of this block's attention, after norms and rotary embedding",
    "values": "values of this block's attention",
    "cls_row": "class attention: the class token's row of the attention map",
    "received": "attention received: the column means of the attention map, streamed",
    "logits": "blocks of rows of the attention logits, streamed",
    "outputs": "what every head's attention gave, before the heads are joined",
}


@dataclass
class BlockSignals:
    """The attention of the current block, and where its tokens have gone since.

    ``attended`` is None once every method that is still to act has seen what it wanted of it. ``observed`` is what
    methods that act after the block have kept of it, by the key of their step.
    """

    attended: Attended | None
    alive: Tensor | None
    inputs: Tensor | None = None
    observed: dict[str, Tensor] = field(default_factory=dict)
    moves: list[Assignment | SoftAssignment | Tensor] = field(default_factory=list)

    def follow(self, decision: Decision) -> None:
        """Remember a decision taken after the attention, so that later methods in the block see matching signals."""
        if isinstance(decision, (Assignment, SoftAssignment)):
            self.moves.append(decision)  # where it took each token is worked out in ``carry``, when it is asked for

    def follow_return(self, before: Tokens, after: Tokens) -> None:
        """Remember that tokens which sat the attention out came back after it: they have no signal and count as 0."""
        self.moves.append(before.group.gather(1, after.rep))  # where each was before, -1 for those that were away

    def carry(self, score: Tensor, how: Literal["sum", "mean"]) -> Tensor:
        """Take (B, M0) or (B, M0, D) values per token of the attention to the tokens present now."""
        if not self.moves:
            return score
        flat = score if score.dim() == 3 else score.unsqueeze(2)
        for move in self.moves:
            if isinstance(move, Tensor):
                flat = take_rows(flat, move.clamp(min=0)).masked_fill((move < 0).unsqueeze(2), 0)
            else:
                flat = follow(flat, move, how)
        return flat if score.dim() == 3 else flat.squeeze(2)


def _no_value(name: object, value: object, joins: object, tokens: tuple[int, ...]) -> str | None:
    """Why ``value`` cannot lie beside ``tokens`` (images, patch tokens), or None."""
    if not isinstance(name, str) or not name:
        return f"under the name {name!r}: expected a text that later sites read it by"
    if joins not in get_args(Joins):
        return f"with joins={joins!r}: expected one of {', '.join(map(repr, get_args(Joins)))}"
    if not isinstance(value, Tensor):
        return f"as {type(value).__name__}: expected a tensor with one value for each patch token"
    if value.dim() not in (2, 3) or value.shape[:2] != tokens:
        return (
            f"of shape {tuple(value.shape)}: expected one value for each of {tokens} (images, patch tokens), "
            "or several along a third dimension"
        )
    if value.dtype == torch.bool and joins in ("sum", "mean"):
        return f"as flags, which have no {joins}: give numbers, or join them by 'max' or 'lead'"
    return None


def plane_of(grid: Grid, name: str) -> tuple[int, int]:
    """(rows, columns) of a grid, for the method called ``name``.

    Raises:
        TokensieveError: the grid has another number of axes.
    """
    if len(grid) != 2:
        raise TokensieveError(
            f"{name} acts on rows and columns of patches, and this model's lie along {len(grid)} axes, "
            f"{' × '.join(map(str, grid))}: choose a method that reads no grid"
        )
    return grid[0], grid[1]


@dataclass
class View:
    """The patch tokens at one site. M is their number; prefix tokens are not shown and cannot be touched.

    Attributes:
        tokens: the state; read ``x``, ``size``, ``rep``, ``alive`` below rather than from here.
        method: the config that is asked.
        layout: the model's token layout.
        block: 0-based number of the block.
        site: how many of this method's sites came before.
        keep: how many patch tokens the method's schedule leaves here.
        declared: the signals that the method's ``needs`` names, the only ones it is shown.
        module: the method's learned part at this site, or None.
        training: whether the model is in training mode.
        signals: the block's attention, None before the attention ran or when the method declared no signal.
        observed: what the method's ``observe`` made of the attention, None where it makes nothing.
        losses: what ``add_loss`` added.
        answers: what ``add_answer`` added.
        extras: what ``carry`` lays beside the tokens.
    """

    tokens: Tokens
    method: Method
    layout: Layout
    block: int
    site: int
    keep: int
    declared: frozenset[Signal]
    module: nn.Module | None
    training: bool
    signals: BlockSignals | None
    observed: Tensor | None = None
    losses: list[Loss] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    extras: dict[str, Extra] = field(default_factory=dict)
    resized: Tensor | None = None

    def resize(self, size: Tensor) -> None:
        """Let each patch token shown stand for ``size`` (B, M) patches from now on; a decision joins these sizes.

        Raises:
            TokensieveError: it is of another shape, or no floating-point numbers.
        """
        if size.shape != self.rep.shape or not size.is_floating_point():
            raise TokensieveError(
                f"method {self.method.name!r} gave sizes of shape {tuple(size.shape)} in {size.dtype}: expected "
                f"floating-point numbers for each of {tuple(self.rep.shape)} (images, patch tokens)"
            )
        self.resized = size

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a scalar to the loss of a training step, weighted as the method wants it; of no effect in eval mode.

        Losses of one name are summed over the sites. ``tokensieve.train.auxiliary.recording`` collects them.
        """
        if self.training:
            self.losses.append(Loss(name, value))

    def add_answer(self, name: str, logits: Tensor, weight: float = 1.0) -> None:
        """Add a head's answer (B, K) to a training step, which adds ``weight`` · the task's loss on it; else no effect.

        For auxiliary heads, which need labels that no method is shown. See ``tokensieve.train.auxiliary.added_loss``.
        """
        if self.training:
            self.answers.append(Answer(name, logits, weight))

    def extra(self, name: str) -> Tensor | None:
        """(B, M) or (B, M, D) what lies beside the patch tokens under ``name``; None where nothing was laid there."""
        return self.tokens.extra(name)

    def carry(self, name: str, value: Tensor, joins: Joins = "mean") -> None:
        """Lay ``value`` (B, M) or (B, M, D) beside the patch tokens shown, from this decision on, which it follows.

        Later sites and methods read it as ``extra(name)``, of the tokens that are present then. A token that returns
        has what it had when it left; one that was away when a value was first laid has 0, or the lowest value there is
        where values join by their maximum.

        Args:
            name: replaces what lay under that name before.
            value: of each patch token, as they stand in ``x``; numbers, or with "lead" and "max" flags.
            joins: what a token made of several has: the value of the one that "lead"s it, their "sum", their "mean"
                whatever their sizes, or their "max".

        Raises:
            TokensieveError: it is no such value, or cannot be joined like that.
        """
        problem = _no_value(name, value, joins, tuple(self.rep.shape))
        if problem is not None:
            raise TokensieveError(f"method {self.method.name!r} carries {name!r} {problem}")
        self.extras[name] = Extra(value, joins)

    @property
    def x(self) -> Tensor:
        """(B, M, C) the patch tokens."""
        return self.tokens.patches

    @property
    def count(self) -> int:
        """M, slots included that hold padding."""
        return self.tokens.count

    @property
    def size(self) -> Tensor:
        """(B, M) float: how many original patches each token stands for."""
        return self.tokens.sizes

    @property
    def rep(self) -> Tensor:
        """(B, M) int64: the original patch, row by row on the grid, whose position each token carries."""
        return self.tokens.rep

    @property
    def grid(self) -> Grid | None:
        """The axes along which the original patches lie, or None where the size is not the model's own and the grid is
        not known. Never None for an ``undivided`` method."""
        return self.tokens.grid

    @property
    def plane(self) -> tuple[int, int] | None:
        """``grid`` for a method that needs (rows, columns).

        Raises:
            TokensieveError: the grid has another number of axes.
        """
        return None if self.grid is None else plane_of(self.grid, self.method.name)

    @property
    def alive(self) -> Tensor | None:
        """(B, M) bool: which slots hold a token, None when all do."""
        return self.tokens.alive

    def _read(self, signal: Signal) -> tuple[BlockSignals, Attended]:
        if signal not in self.declared:
            raise TokensieveError(
                f"method {self.method.name!r} reads the signal {signal!r} without declaring it: "
                f"name it in needs(), which now gives {sorted(self.declared)}"
            )
        if self.signals is None:
            raise TokensieveError(
                f"method {self.method.name!r} reads {signal!r} before the attention of block {self.block} has run: "
                f"act in the 'middle' of a block or 'after' it"
            )
        if self.signals.attended is None:
            raise TokensieveError(
                f"method {self.method.name!r} reads {signal!r} after it has observed the attention: "
                "what observe() returned is all that is kept, as view.observed"
            )
        return self.signals, self.signals.attended

    def _per_token(self, tensor: Tensor, signals: BlockSignals) -> Tensor:
        return signals.carry(head_mean(tensor[:, :, self.layout.prefix :]), "mean")

    @property
    def inputs(self) -> Tensor:
        """(B, M, C) what the projections of the attention were given, without a gradient."""
        signals, _ = self._read("inputs")
        assert signals.inputs is not None
        return signals.carry(signals.inputs[:, self.layout.prefix :], "mean")

    @property
    def queries(self) -> Tensor:
        """(B, M, D) queries, mean over heads, in float32 or better."""
        signals, attended = self._read("queries")
        return self._per_token(attended.queries[..., : attended.own], signals)

    @property
    def keys(self) -> Tensor:
        """(B, M, D) keys, mean over heads, in float32 or better; of merged tokens the mean of their members."""
        signals, attended = self._read("keys")
        return self._per_token(attended.keys[..., : attended.own], signals)

    @property
    def head_keys(self) -> Tensor:
        """(B, H, M, D) keys; (B, 1, M, D), their mean over heads, where tokens moved since the attention."""
        signals, attended = self._read("keys")
        if signals.moves:
            return self.keys.unsqueeze(1)
        return attended.keys[:, :, self.layout.prefix :, : attended.own]

    @property
    def values(self) -> Tensor:
        """(B, M, D) values, mean over heads, in float32 or better."""
        signals, attended = self._read("values")
        return self._per_token(attended.values, signals)

    @property
    def attended(self) -> Attended:
        """The attention's queries, keys and values (B, H, L, D), for methods that stream its rows."""
        return self._read("logits")[1]

    def score(self, per_token: Tensor) -> Tensor:
        """A score (B, L) over all tokens of the attention as one (B, M) over the patch tokens present.

        Members of a merged token add up, as their columns of the attention map do. Padding gets -inf.
        """
        if self.signals is None:
            raise TokensieveError("there is no attention to score tokens by before it has run")
        score = self.signals.carry(per_token[:, self.layout.prefix :], "sum")
        return score if self.alive is None else score.masked_fill(~self.alive, -torch.inf)

    @property
    def cls_row(self) -> Tensor:
        """(B, M) class attention, mean over heads, in float32 or better; sums to at most 1 over the patches."""
        return self.score(attention.cls_row(self._read("cls_row")[1]))

    @property
    def received(self) -> Tensor:
        """(B, M) attention received, mean over heads and query rows, in float32 or better."""
        signals, attended = self._read("received")
        voters = attention.voters_of(signals.alive, self.layout.prefix)
        return self.score(attention.received(attended, voters).mean(dim=1))

    @property
    def importance(self) -> Tensor:
        """(B, M) class attention where the model has a class token, else attention received."""
        return self.cls_row if self.layout.class_token else self.received

    def rows(self, index: Tensor) -> Tensor:
        """(B, K, C) the patch tokens at ``index`` (B, K), without a copy of the others."""
        return self.tokens.rows(index)


def importance_signal(layout: Layout) -> Signal:
    """The signal behind ``View.importance`` for this layout."""
    return "cls_row" if layout.class_token else "received"
