"""The state between two blocks of a reduced model: the tokens present, and the way back to every original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tokensieve.ops.moving import put_back
from tokensieve.tokens.form import Form
from tokensieve.tokens.node import register
from tokensieve.tokens.record import Event, Stage
from tokensieve.tokens.restore import restore
from tokensieve.tokens.rider import Rider
from tokensieve.tokens.soft import Blend, SoftRestore
from tokensieve.tokens.stand_in import READ, StandIn
from tokensieve.tokens.table import Extra, Table
from tokensieve.utils.compiling import number

Fill = Literal["last", "mean"]


@dataclass(frozen=True)
class Parked:
    """Tokens that sit out: the state before they left, where each of its patch tokens went (-1: parked), and the tokens
    ``dropped`` that may return (where images keep different numbers, some of these stayed). Where tokens part again
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
    """The state before a soft assignment, the way back to it, and the block before which that is gone; None: behind the
    last one."""

    before: Tokens
    restore: SoftRestore
    block: int | None = None


@dataclass(frozen=True)
class WayBack:
    """How every original is found again.

    Attributes:
        group: (B, N) int64, the patch token that each of the N original patches stands in, -1 while parked or gone.
        canvas: (B, N, C) last value of the originals that left for good; None while none did.
        parked: groups of tokens that will return, oldest first.
        outer: the state before a soft assignment; None outside one.
        fill: what takes the place of originals that are gone: their "last" value or the "mean" of the tokens present.
    """

    group: Tensor
    canvas: Tensor | None = None
    parked: tuple[Parked, ...] = ()
    outer: Outer | None = None
    fill: Fill = "last"


@dataclass(frozen=True, eq=False)
class Tokens(StandIn):
    """The tokens between two blocks of a reduced model, and all that is needed to give every original back.

    Attributes:
        x: (B, P + M, C) the tokens present, P prefix tokens first.
        table: what each of the M patch tokens carries beside its features.
        back: the way back to the N originals.
        prefix: P, the number of class, distillation and register tokens.
        grid: the axes that the N patches lie along, (rows, columns) of an image, the last one fastest; None where
            it is not known.
        hidden: how many of the last patch tokens only stand in for removed ones while training (``hide``).
        version: counts structural changes, so that parked tokens can tell whether they return to the same places.
        events, stages: what the sites did and which blocks ran so far, for pictures and MAC counts.
        riders: by name, what else travels along, see ``rider.Rider``.
        normed: (B, P + M, C) ``x`` behind the norm that reads it next, where the move had it on its way; else None.
        behind: how many of the prefix tokens, the last of them, the model has behind the patches.
        form: how the model has its tokens, where that is not (B, P + N, C).
    """

    x: Tensor
    table: Table
    back: WayBack
    prefix: int = 0
    grid: tuple[int, ...] | None = None
    hidden: int = 0
    version: int = 0
    events: tuple[Event, ...] = ()
    stages: tuple[Stage, ...] = ()
    riders: Mapping[str, Rider] = field(default_factory=dict)
    normed: Tensor | None = None
    behind: int = 0
    form: Form | None = None

    @staticmethod
    def start(
        x: Tensor,
        prefix: int,
        fill: Fill = "last",
        grid: tuple[int, ...] | None = None,
        behind: int = 0,
        form: Form | None = None,
    ) -> Tokens:
        """The state in which nothing has happened yet to ``x`` (B, P + N, C), as the model has it."""
        x = in_front(x, prefix, behind)
        positions = torch.arange(x.shape[1] - prefix, device=x.device).expand(x.shape[0], -1)
        return Tokens(x, Table(positions), WayBack(positions, fill=fill), prefix, grid, behind=behind, form=form)

    @property
    def group(self) -> Tensor:
        """(B, N) int64, see ``WayBack``."""
        return self.back.group

    @property
    def rep(self) -> Tensor:
        """(B, M) int64, see ``Table``."""
        return self.table.rep

    @property
    def alive(self) -> Tensor | None:
        """(B, M) bool or None, see ``Table``."""
        return self.table.alive

    @property
    def mask(self) -> Tensor | None:
        """(B, M) or None, see ``Table``."""
        return self.table.mask

    @property
    def patches(self) -> Tensor:
        """(B, M, C), the tokens present without the prefix."""
        return self.x[:, self.prefix :]

    @property
    def count(self) -> int:
        """M, the number of patch tokens present (slots, where some are padding)."""
        return number(self.x.shape[1]) - self.prefix

    @property
    def originals(self) -> int:
        """N, the patches of the image, whatever has become of them; also inside soft assignments."""
        return number(self._outermost.back.group.shape[1])

    @property
    def sizes(self) -> Tensor:
        """(B, M) in float32 or better, how many originals each token stands for; 0 for padding."""
        table = self.table
        if table.size is None:
            dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
            size = torch.ones(table.rep.shape, dtype=dtype, device=self.x.device)
        else:
            size = table.size
        return size if table.alive is None else size * table.alive

    def rows(self, index: Tensor) -> Tensor:
        """(B, K, C), the patch tokens at ``index`` (B, K); cheaper than slicing ``patches`` off first."""
        return put_back(self.x, index, None, self.prefix, with_prefix=False)

    def with_patches(self, patches: Tensor, **changes: Any) -> Tokens:
        """The same prefix with other patch tokens, other fields as in ``changed``."""
        x = torch.cat([self.x[:, : self.prefix], patches], dim=1) if self.prefix else patches
        return self.changed(x=x, **changes)

    def changed(self, **changes: Any) -> Tokens:
        """The state with other fields; other tokens ``x`` have no ``normed`` unless it is given with them."""
        if "x" in changes and "normed" not in changes:
            changes["normed"] = None
        if torch.compiler.is_dynamo_compiling():
            return replace(self, **changes)
        new = object.__new__(Tokens)  # as ``node.changed``, without one more call
        new.__dict__.update(self.__dict__, **changes)
        new.__dict__.pop(READ, None)
        return new

    def extra(self, name: str) -> Tensor | None:
        """(B, M) or (B, M, D) what a method laid beside the patch tokens under ``name``; None where nothing lies."""
        extra = self.table.extras.get(name)
        return None if extra is None else extra.patches

    def with_extra(self, name: str, extra: Extra) -> Tokens:
        """The state with a value more beside each token; it follows them from now on."""
        return self.changed(table=self.table.changed(extras={**self.table.extras, name: extra}))

    def with_rider(self, name: str, rider: Rider | None) -> Tokens:
        """The state with a rider more, or without the one called ``name`` where ``rider`` is None."""
        others = {key: other for key, other in self.riders.items() if key != name}
        return self.changed(riders=others if rider is None else {**others, name: rider})

    def restore(self, fill: Fill | None = None) -> Tensor:
        """Give every original back: (B, P + N, C), in the dtype of ``x``.

        A token that stands for several originals is given to each of them; parked ones return; tokens that are gone
        get their last value (``fill="last"``) or the size-weighted mean of the patch tokens present (``fill="mean"``,
        what a head that averages over patches needs in order to average over the kept ones only). Default: the fill
        that the model was reduced with.
        """
        whole = restore(self, self.back.fill if fill is None else fill)
        whole = in_place(whole, self.prefix, self.behind)
        return whole if self.form is None else self.form.given(whole)

    def cannot(self, what: str) -> str:
        """Why ``what`` is refused, and what to do instead."""
        block = self.stages[-1].block if self.stages else "NUMBER"
        return (
            f"the output of block {block} is the compact state of a model with reduced tokens, which cannot {what}: "
            f"with ts.apply(..., taps=[{block}]) it is a plain tensor of all tokens, with its gradient"
        )

    def to(self, *args: Any, **kwargs: Any) -> Tokens | Tensor:
        """The state on another device, still compact, as tools move it that place blocks on devices.

        Arguments as of ``Tensor.to``. In another dtype it is a tensor of all tokens, for somebody who reads it.
        """
        names = ("copy", "memory_format")
        how = {name: value for name, value in kwargs.items() if name not in names}
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **how)
        if dtype is not None and dtype != self.dtype:
            return self.whole().to(*args, **kwargs)
        if device is None or device == self.device:
            return self
        moved: Tokens = tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=non_blocking), self)
        return moved

    @property
    def shape(self) -> torch.Size:
        if self.form is not None:
            return self.form.shape
        batch, _, channels = self.x.shape
        return torch.Size((batch, self.prefix + self._outermost.back.group.shape[1], channels))

    @property
    def _outermost(self) -> Tokens:
        outermost = self
        while outermost.back.outer is not None:
            outermost = outermost.back.outer.before
        return outermost

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device


def in_front(x: Tensor, prefix: int, behind: int) -> Tensor:
    """(B, P + N, C) with the last ``behind`` tokens moved in front of the patches, among the ``prefix`` tokens P."""
    if not behind:
        return x
    front, patches = prefix - behind, x.shape[1] - prefix
    return torch.cat([x[:, :front], x[:, front + patches :], x[:, front : front + patches]], dim=1)


def in_place(x: Tensor, prefix: int, behind: int) -> Tensor:
    """What ``in_front`` was given."""
    if not behind:
        return x
    front = prefix - behind
    return torch.cat([x[:, :front], x[:, prefix:], x[:, front:prefix]], dim=1)


register(Blend, ("index", "weight"))
register(Parked, ("before", "index", "dropped", "start"))
register(Outer, ("before", "restore"))
register(WayBack, ("group", "canvas", "parked", "outer"))
register(Tokens, ("x", "table", "back", "events", "stages", "riders", "normed"))
