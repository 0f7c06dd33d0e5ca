"""The protocol of a method: a frozen config that says where it acts, what it reads, how many tokens it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from tokensieve.attention.signals import Attended
from tokensieve.errors import TokensieveError
from tokensieve.families._layout import Layout
from tokensieve.methods._config import Config
from tokensieve.methods._view import Signal, View
from tokensieve.tokens.decision import Decision, Until

if TYPE_CHECKING:
    from tokensieve.tokens.state import Tokens

Point = Literal["before", "middle", "after"]
POINTS: tuple[Point, ...] = ("before", "middle", "after")


@dataclass(frozen=True, kw_only=True)
class Method(Config, ABC):
    """Base of every method that acts on the patch tokens of a ViT. A subclass is one frozen dataclass in one file.

    Class attributes, besides those of ``Config``:
        point: where in a block it acts: "before" it, in the "middle" (after the attention's residual), "after" it.
        until: when tokens it drops return, see ``Assignment``. Anything but "end" makes it a skipping method.
        ragged: True when images may keep different numbers of tokens.
        undisturbed: True when no other method may act between one of its sites and the return of its tokens.
        undivided: True when it acts on the grid of all patches: none may have been removed before.
        looks_at_grid: True when it reads ``view.grid`` where that is known; methods that are ``undivided`` always do.
        gridded: True when the tokens it leaves are a grid too, so that their number cannot be rounded.
        auxiliary: True when it adds to the loss while training (``View.add_loss``, ``View.add_answer``).
        mixes: True when it may answer with a SoftAssignment, now or while training: no token may be away then.
    """

    point: ClassVar[Point] = "middle"
    until: ClassVar[Until] = "end"
    ragged: ClassVar[bool] = False
    undisturbed: ClassVar[bool] = False
    undivided: ClassVar[bool] = False
    looks_at_grid: ClassVar[bool] = False
    gridded: ClassVar[bool] = False
    auxiliary: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.point, str) and cls.point not in POINTS:  # one may also depend on the options, as a property
            raise TokensieveError(f"{cls.name}: point must be one of {', '.join(map(repr, POINTS))}, got {cls.point!r}")

    @abstractmethod
    def blocks(self, depth: int) -> tuple[int, ...]:
        """The 0-based blocks at which this config acts in a model of ``depth`` blocks, ascending."""

    @abstractmethod
    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        """How many of ``patches`` tokens the ``site``-th site (0-based) leaves to the blocks that follow.

        For a ragged method the most it may leave. Equal to ``patches`` means the site does nothing at all.
        """

    def refuse(self, layout: Layout) -> str | None:
        """Why the options do not fit a model of this layout, in words behind the method's name; default None: they do.

        Asked once, when methods are applied; images of other sizes may have fewer tokens than the layout says.
        """
        return None

    def fewest(self, patches: int) -> int:
        """The fewest of ``patches`` tokens that one site can leave; only asked where counts are rounded. Default: 1."""
        return 1

    @abstractmethod
    def assign(self, view: View) -> Decision:
        """Decide what becomes of the patch tokens in ``view``, so that ``view.keep`` of them are left.

        Only called when there is something to remove. ``view.keep`` is what ``remaining`` says, unless the user had the
        counts rounded (``ts.apply(..., multiple=8)``).
        """

    def needs(self, layout: Layout) -> frozenset[Signal]:
        """The signals ``assign`` reads, for a model of this layout. Default: none."""
        return frozenset()

    def observe(self, attended: Attended, module: nn.Module | None) -> Tensor | None:
        """What to keep of the attention for ``assign``, for a method that acts after the block: ``view.observed``.

        Where every such method of a block keeps something, queries, keys and values need not outlive its MLP, which at
        1024² pixels would be a quarter more memory. Default: None, nothing; the signals stay.

        Args:
            attended: what the attention of the block was computed from.
            module: the method's learned part at this site, or None.
        """
        return None

    def module(self, layout: Layout) -> nn.Module | None:
        """A fresh learned part for one site, or None. It becomes part of the model's state dict.

        Constants that ``assign`` reads belong here too, as buffers that are not persistent: a tensor made from Python
        values while the model runs is copied from the host every time, and no CUDA graph can hold it.
        """
        return None

    def sharing(self, depth: int) -> frozenset[int]:
        """The blocks that attend by the map of the block before, all behind the first site. Default: none."""
        return frozenset()

    def watches(self, depth: int) -> frozenset[int]:
        """Blocks behind whose attention ``watch`` is called, whether the method acts there or not. Default: none."""
        return frozenset()

    def watch(self, view: View) -> None:
        """Carry what the attention of a block says (``View.carry``), for a decision in a later block.

        ``view`` shows the tokens as they went into the block and the signals that ``needs`` names; it has no learned
        part, and nothing can leave.
        """

    def behind(self, tokens: Tokens, block: int, layout: Layout, training: bool) -> Tokens:
        """What becomes of the state behind the MLP of every block from the first site on, before a method acts there.

        For a method that carries something beside each token (``Tokens.with_extra``) or answers with other values than
        the last block's. It moves no token. Default: ``tokens`` itself.
        """
        return tokens

    @property
    def log_size_attention(self) -> bool:
        """Whether keys that stand for s patches get log(s) added to their logits in every later block."""
        return bool(getattr(self, "proportional", False))

    @property
    def map_share(self) -> float:
        """Which share of the entries of each attention map stays, in (0, 1], from the first site on; below 1 the map is
        held."""
        return 1.0

    @property
    def returns(self) -> Until:
        """When dropped tokens return with this config."""
        return self.until

    def returns_at(self, site: int, layout: Layout) -> Until:
        """When the tokens that the ``site``-th site drops return, where that differs between sites."""
        return self.returns
