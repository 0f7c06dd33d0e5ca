"""The token algebra: one immutable state and the three answers a method may give.

Everything a token-reduction method does is one of three things to the tokens present:

* ``Assignment``: each token leads a new one, moves onto one (merge, pool), or leaves (prune, skip);
* ``SoftAssignment``: every new token is a weighted sum of all, with its own way back;
* ``KeepMask``: nothing moves; a differentiable mask takes tokens out of attention while training.

``Tokens`` carries the outcome from block to block and gives every original token back through ``restore``.
All functions are pure: they return a new ``Tokens`` and touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tokensieve.attention.shared import Maps
from tokensieve.errors import TokensieveError
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import take_rows
from tokensieve.tokens.decision import (
    Assignment,
    Decision,
    KeepMask,
    SoftAssignment,
    SoftRestore,
    averaging,
    leaders,
    mixed,
    return_point,
    rows_to_one,
    shared_out,
)
from tokensieve.tokens.move import add_spread, behind_prefix, move_tokens, put_back
from tokensieve.tokens.record import Event, Stage
from tokensieve.tokens.restore import patches_at_originals
from tokensieve.tokens.restore import restore as restore
from tokensieve.tokens.restore import returning as returning
from tokensieve.tokens.soft import Blend

Fill = Literal["last", "mean"]


@dataclass(frozen=True)
class Loss:
    """A loss that a method added while training; see ``View.add_loss``."""

    name: str
    value: Tensor


@dataclass(frozen=True)
class Answer:
    """An answer (B, K) that a method's own head gave while training; see ``View.add_answer``."""

    name: str
    logits: Tensor
    weight: float


@dataclass(frozen=True)
class Parked:
    """Tokens that sit out: the state before they left, where each of its patch tokens went (-1: parked), and the tokens
    ``dropped`` that may come back (where images keep different numbers, some of these stayed). Where tokens part again
    that had merged, ``start`` (B, P + K, C) are the merged ones as they were at first."""

    before: Tokens
    index: Tensor
    dropped: Tensor
    block: int
    after_attention: bool
    version: int
    start: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    """The state before a soft assignment and the way back to it."""

    before: Tokens
    restore: SoftRestore


@dataclass(frozen=True)
class Tokens:
    """The tokens between two blocks of a reduced model, and all that is needed to give every original back.

    It also stands in for the (B, N, C) tensor that other code expects there: indexing it, or handing it to a torch
    function such as a norm, restores it first. So layers somebody reads come out whole and the rest stays compact.

    Attributes:
        x: (B, P + M, C) the tokens present, P prefix tokens first.
        group: (B, N) int64, the patch token that each of the N original patches stands in, -1 while parked or gone.
        rep: (B, M) int64 in [0, N), the original patch whose position each token carries.
        prefix: P, the number of class, distillation and register tokens.
        size: (B, M) how many originals each token stands for; None while every one stands for itself.
        alive: (B, M) bool, which slots hold a token; None when all do.
        mask: (B, M) training-time keep mask; None when there is none.
        hidden: how many of the last patch tokens only stand in for removed ones while training (``masking``).
        canvas: (B, N, C) last value of the originals that left; None while none did.
        parked: groups of tokens that will return, oldest first.
        outer: the state before a soft assignment; None outside one.
        grid: (rows, columns) that the N patches are on, row by row; None where nobody knows.
        fill: what takes the place of originals that are gone: their "last" value or the "mean" of the tokens present.
        version: counts structural changes, so that parked tokens can tell whether they return to the same places.
        events, stages: the record that pictures and MAC counts read.
        shares: a state with label shares (B, P + M, 1) as features that goes where these tokens go, see ``tl_align``.
        losses: what methods added to the loss so far, while training.
        answers: what their own heads answered so far, while training.
        maps: where the attention maps of the block before come from, where the next one shares them.
        carried: (B, P + M, D) what a ragged method carries beside each token, see ``Method.behind``; None otherwise.
        normed: (B, P + M, C) ``x`` behind the norm that reads it next, where the move had it on its way; else None.
        size_bias: (B, 1, 1, P + M) what ``key_bias`` makes of ``size``, where the move had it on its way; else None.
    """

    x: Tensor
    group: Tensor
    rep: Tensor
    prefix: int = 0
    size: Tensor | None = None
    alive: Tensor | None = None
    mask: Tensor | None = None
    hidden: int = 0
    canvas: Tensor | None = None
    parked: tuple[Parked, ...] = ()
    outer: Outer | None = None
    fill: Fill = "last"
    grid: tuple[int, int] | None = None
    version: int = 0
    events: tuple[Event, ...] = ()
    stages: tuple[Stage, ...] = ()
    shares: Tokens | None = None
    losses: tuple[Loss, ...] = ()
    answers: tuple[Answer, ...] = ()
    carried: Tensor | None = None
    maps: Maps | None = None
    normed: Tensor | None = None
    size_bias: Tensor | None = None

    @staticmethod
    def start(x: Tensor, prefix: int, fill: Fill = "last", grid: tuple[int, int] | None = None) -> Tokens:
        """The state in which nothing has happened yet to ``x`` (B, P + N, C)."""
        positions = torch.arange(x.shape[1] - prefix, device=x.device).expand(x.shape[0], -1)
        return Tokens(x=x, group=positions, rep=positions, prefix=prefix, fill=fill, grid=grid)

    @property
    def patches(self) -> Tensor:
        """(B, M, C), the tokens present without the prefix."""
        return self.x[:, self.prefix :]

    @property
    def count(self) -> int:
        """M, the number of patch tokens present (slots, where some are padding)."""
        return self.x.shape[1] - self.prefix

    @property
    def originals(self) -> int:
        """N, the patches of the image, whatever has become of them; also inside soft assignments."""
        return self.shape[1] - self.prefix

    @property
    def sizes(self) -> Tensor:
        """(B, M) in float32 or better, how many originals each token stands for; 0 for padding."""
        dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        size = torch.ones(self.rep.shape, dtype=dtype, device=self.x.device) if self.size is None else self.size
        return size if self.alive is None else size * self.alive

    def rows(self, index: Tensor) -> Tensor:
        """(B, K, C), the patch tokens at ``index`` (B, K); cheaper than slicing ``patches`` off first."""
        return put_back(self.x, index, None, self.prefix, with_prefix=False)

    def with_patches(self, patches: Tensor, **changes: Any) -> Tokens:
        """The same prefix with other patch tokens, other fields as in ``changed``."""
        x = torch.cat([self.x[:, : self.prefix], patches], dim=1) if self.prefix else patches
        return self.changed(x=x, **changes)

    def changed(self, **changes: Any) -> Tokens:
        """What ``dataclasses.replace`` gives, without its walk over the fields, which takes longer than a kernel.

        Other tokens ``x`` have no ``normed``, and another ``size`` no ``size_bias``, unless it is given with them.
        """
        if "x" in changes and "normed" not in changes:
            changes["normed"] = None
        if "size" in changes and "size_bias" not in changes:
            changes["size_bias"] = None
        if torch.compiler.is_dynamo_compiling():
            return replace(self, **changes)
        new = object.__new__(Tokens)
        new.__dict__.update(self.__dict__, **changes)
        return new

    def restore(self, fill: Fill | None = None) -> Tensor:
        """Give every original back: (B, P + N, C). See ``restoring.restore``."""
        return restore(self, self.fill if fill is None else fill)

    # Standing in for a tensor: whoever reads the state reads the restored tokens.
    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple(_as_tensor(a) for a in args)
        return func(*args, **{k: _as_tensor(v) for k, v in (kwargs or {}).items()})

    def __getitem__(self, item: Any) -> Tensor:
        return self.restore("last")[item]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.restore("last"), name)

    @property
    def shape(self) -> torch.Size:
        outermost = self
        while outermost.outer is not None:
            outermost = outermost.outer.before
        batch, _, channels = self.x.shape
        return torch.Size((batch, self.prefix + outermost.group.shape[1], channels))

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device


def _as_tensor(value: Any) -> Any:
    if isinstance(value, Tokens):
        return value.restore("last")
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Tokens) for entry in value):
        return type(value)([_as_tensor(entry) for entry in value])
    return value


def _operator(name: str) -> Callable[..., Any]:
    def of_restored(self: Tokens, *args: Any) -> Any:
        return getattr(self.restore("last"), name)(*map(_as_tensor, args))

    of_restored.__name__ = name
    return of_restored


# Python looks operators up on the class, past ``__getattr__``.
for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    for _side in ("", "r"):
        setattr(Tokens, f"__{_side}{_name}__", _operator(f"__{_side}{_name}__"))
for _name in ("neg", "abs", "len", "iter", "array"):
    setattr(Tokens, f"__{_name}__", _operator(f"__{_name}__"))


def _register(cls: type, tensors: tuple[str, ...]) -> None:
    """Let torch see the tensors inside ``cls``, so that FSDP, checkpointing and export treat it as they do a tuple."""
    others = tuple(f.name for f in fields(cls) if f.name not in tensors)
    pytree.register_pytree_node(
        cls,
        lambda state: ([getattr(state, name) for name in tensors], tuple(getattr(state, name) for name in others)),
        lambda values, rest: cls(**dict(zip(tensors, values, strict=True)), **dict(zip(others, rest, strict=True))),
        serialized_type_name=f"tokensieve.{cls.__name__}",
    )


_register(
    Tokens,
    (
        "x",
        "group",
        "rep",
        "size",
        "alive",
        "mask",
        "canvas",
        "parked",
        "outer",
        "events",
        "stages",
        "shares",
        "carried",
        "maps",
        "normed",
        "size_bias",
    ),
)
_register(Parked, ("before", "index", "dropped", "start"))
_register(Outer, ("before", "restore"))
_register(Blend, ("index", "weight"))
_register(Event, ("group",))
_register(Stage, ("alive", "seen", "mask"))
_register(Loss, ("value",))
_register(Answer, ("logits",))
_register(Maps, ("pairs",))


def apply(
    tokens: Tokens,
    decision: Decision,
    block: int = 0,
    point: str = "middle",
    method: str = "",
    norm: Norm | None = None,
) -> Tokens:
    """The state after a decision.

    Args:
        tokens: the state the decision was made on.
        decision: an ``Assignment``, a ``SoftAssignment`` or a ``KeepMask`` over its M patch tokens.
        block, point, method: where it happened, for the record and to resolve ``until``.
        norm: what reads the tokens next, for ``Tokens.normed``; None where nobody asks for that.
    """
    if isinstance(decision, KeepMask):
        mask = decision.mask if tokens.mask is None else tokens.mask * decision.mask
        shares = None if tokens.shares is None else apply(tokens.shares, KeepMask(mask=decision.mask.detach()))
        # Tokens that are away must not bring the masks back that were there when they left.
        return tokens.changed(mask=mask, shares=shares, version=tokens.version + bool(tokens.parked))
    if isinstance(decision, SoftAssignment):
        changes, group, returns = _mixed(tokens, decision), None, False
    else:
        changes = _moved(tokens, decision, block, point, norm)
        group = changes["group"] if tokens.outer is None else None
        returns = decision.dropped is not None and decision.until != "end"
    after = changes["x"].shape[1] - tokens.prefix
    event = Event(block, point, method, tokens.count, after, group, returns)
    shares = tokens.shares
    if shares is not None:
        with torch.no_grad(), torch.autocast(tokens.x.device.type, enabled=False):
            shares = apply(shares, averaging(decision), block, point, method)
    return tokens.changed(**changes, version=tokens.version + 1, events=(*tokens.events, event), shares=shares)


def _moved(tokens: Tokens, assignment: Assignment, block: int, point: str, norm: Norm | None = None) -> dict[str, Any]:
    """What an assignment changes in the state."""
    keep = assignment.keep
    before = tokens.sizes if tokens.alive is not None and assignment.joining is not None else tokens.size
    norm = norm if assignment.spread is None else None
    moved = move_tokens(tokens.x, tokens.group, tokens.rep, before, assignment, norm)
    x = add_spread(moved.x, tokens.x, assignment)
    leaves = assignment.dropped is not None or assignment.alive is not None or assignment.parts
    parked, canvas = tokens.parked, tokens.canvas
    if leaves and assignment.until != "end":
        at, after_attention = return_point(assignment.until, block, point)
        dropped = assignment.dropped if assignment.dropped is not None else keep[:, :0]
        if assignment.alive is not None:
            dropped = torch.cat([dropped, keep], dim=1)  # slots of padding hold tokens that left
        start = x if assignment.parts else None
        entry = Parked(tokens, moved.slots, dropped, at, after_attention, tokens.version + 1, start)
        parked = (*parked, entry)
    elif leaves:
        canvas = patches_at_originals(tokens)
    alive = assignment.alive
    if alive is None and tokens.alive is not None:
        alive = tokens.alive.gather(1, keep)
    return {
        "x": x,
        "normed": moved.normed,
        "group": moved.group,
        "rep": moved.rep,
        "size": moved.size,
        "size_bias": moved.size_bias,
        "alive": alive,
        "mask": None if tokens.mask is None else tokens.mask.gather(1, keep),
        "carried": None if tokens.carried is None else take_rows(tokens.carried, behind_prefix(keep, tokens.prefix)),
        "canvas": canvas,
        "parked": parked,
    }


def _mixed(tokens: Tokens, soft: SoftAssignment) -> dict[str, Any]:
    """What a soft assignment changes in the state."""
    matrix, way_back = soft.matrix, soft.restore
    if way_back is None:
        if not isinstance(matrix, Tensor):
            raise TokensieveError("a soft assignment by a Mixing names its way back: give restore, for example a Blend")
        way_back = rows_to_one(matrix.transpose(1, 2))
    patches = mixed(matrix, tokens.patches)
    dense_back = way_back if isinstance(way_back, Tensor) else None
    first = leaders(matrix)
    positions = torch.arange(first.shape[1], device=first.device).expand(first.shape[0], -1)
    return {
        "x": torch.cat([tokens.x[:, : tokens.prefix], patches], dim=1) if tokens.prefix else patches,
        "group": positions,
        "rep": tokens.rep.gather(1, first),
        "size": shared_out(matrix, tokens.sizes.unsqueeze(2), dense_back).squeeze(2),
        "alive": None,
        "mask": None,
        "canvas": None,
        "parked": (),
        "outer": Outer(tokens, way_back),
    }
