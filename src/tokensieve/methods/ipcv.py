"""IPCV (arXiv 2512.18747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import kept, scaled_sites
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.ops.rows import at_least_float32, invert, one_hot, split_top, take_rows
from tokensieve.tokens.decision import Until
from tokensieve.tokens.node import register
from tokensieve.tokens.soft import Blend, Mixing, SoftAssignment

ENTERED, STATE, SCORE = "ipcv-entered", "ipcv-state", "ipcv-score"  # what lies beside each token
PUBLISHED_LAYER = (3,)


@dataclass(frozen=True, kw_only=True)
class IPCV(Method):
    """Run the tokens that an early block changed most, and let the others follow their nearest: what they were, plus
    what these have changed by.

    Behind the first K blocks a token scores ‖h_K − h_{K−1}‖₂, and the top ones stay. Each of the others is taken to
    change as its nearest do: h_K plus the mean of what the ``neighbours`` tokens nearest to it among those that stay
    have changed by since. For the next ``attentions`` blocks they come back so for the attention, whose keys and values
    are then nearly those of all tokens, and sit out the MLP; what the attention makes of them themselves is not used.
    Behind the last block they come back so for good, and no token is lost, as a model wants that joins patches to
    features for a language model. Made for such towers, without training.

    Our choice: near is the Euclidean distance between states h_K; K scales with the depth.

    Options:
        keep: share of the patch tokens that stays; ceil(keep · N).
        layer: K, how many blocks run before, 1 or more; default 3 of 12, scaled to the depth.
        attentions: for how many blocks the others come back for the attention, 1 or more; fewer where the model ends.
        neighbours: how many of those that stay a token follows.
    """

    keep: float = 0.5
    layer: int | None = None
    attentions: int = 4
    neighbours: int = 10

    undisturbed = True
    mixes = True
    knob = "keep"
    paper = (
        "IPCV: Information-Preserving Compression for MLLM Visual Encoders",
        "Chen et al.",
        2025,
        "2512.18747",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        require(self.layer is None or self.layer >= 1, self, "layer", "1 or more")
        require(self.attentions >= 1, self, "attentions", "1 or more")
        require(self.neighbours >= 1, self, "neighbours", "1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        first = max(1, scaled_sites(PUBLISHED_LAYER, depth)[0]) if self.layer is None else self.layer
        if first >= depth:
            raise TokensieveError(
                f"{self.name}: layer must leave a block behind it in a model of {depth} blocks, got {first}"
            )
        return tuple(range(first, min(first + self.attentions, depth)))

    def returns_at(self, site: int, layout: Layout) -> Until:
        return "end" if site == len(self.blocks(layout.depth)) - 1 else "block"

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return kept(patches, self.keep)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"keys"})  # watching a block takes a tap; of what it sees, nothing is read

    def watches(self, depth: int) -> frozenset[int]:
        first = self.blocks(depth)[0]
        return frozenset({first - 1, first})

    def watch(self, view: View) -> None:
        if self.remaining(view.count, 0, view.layout) == view.count:
            return
        x = at_least_float32(view.x)
        entered = view.extra(ENTERED)
        if view.block < self.blocks(view.layout.depth)[0] or entered is None:
            view.carry(ENTERED, x, "mean")
            return
        view.carry(STATE, x, "mean")
        view.carry(SCORE, (x - entered).square().sum(dim=2), "max")

    def assign(self, view: View) -> SoftAssignment:
        state, score = view.extra(STATE), view.extra(SCORE)
        assert state is not None and score is not None  # since the first site
        keep, dropped = split_top(score, view.keep)
        until: Literal["end", "block"] = "end" if self.returns_at(view.site, view.layout) == "end" else "block"
        nearest = _nearest(take_rows(state, dropped), take_rows(state, keep), self.neighbours)
        place = invert(torch.cat([keep, dropped], dim=1))
        blend = _blend(place, view.keep, nearest, state.dtype)
        way_back = Following(blend, state, keep, place < view.keep)
        return SoftAssignment(matrix=Selection(keep, blend), restore=way_back, until=until)


@dataclass(frozen=True)
class Selection(Mixing):
    """Some tokens as they are.

    Attributes:
        leaders: (B, S) which of the M.
        blend: each of the M as itself, or as the mean of those that it follows.
    """

    leaders: Tensor
    blend: Blend

    def mean(self, values: Tensor) -> Tensor:
        return at_least_float32(take_rows(values, self.leaders))

    def share(self, values: Tensor) -> Tensor:
        values = at_least_float32(values)
        batch, _, channels = values.shape
        shared = values.new_zeros(batch, self.count, channels)
        for index, weight in zip(self.blend.index.unbind(2), self.blend.weight.to(values.dtype).unbind(2), strict=True):
            part = values * weight.unsqueeze(2)
            if torch.compiler.is_exporting():  # exported graphs hold no scatter, which other runtimes run slowly
                shared = shared + one_hot(index, self.count, values.dtype) @ part
            else:
                shared = shared.scatter_add(1, index.unsqueeze(2).expand(-1, -1, channels), part)
        return shared


@dataclass(frozen=True)
class Following:
    """The way back: tokens that stayed as they are, the others as they were plus the mean of what those that they
    follow have changed by.

    Attributes:
        blend: each of the M old tokens as itself, or as the mean of those that it follows.
        state: (B, M, C) what the old ones were, in float32 or better.
        leaders: (B, S) which of the old ones the new ones are.
        stays: (B, M) bool: which of the old ones these are.
    """

    blend: Blend
    state: Tensor
    leaders: Tensor
    stays: Tensor

    def __call__(self, new: Tensor, before: Tensor) -> Tensor:
        """(B, M, C) of the new tokens (B, S, C), in their dtype."""
        values = at_least_float32(new)
        followed = (self.state + self.blend(values - take_rows(self.state, self.leaders))).to(new.dtype)
        return torch.where(self.stays.unsqueeze(2), take_rows(new, self.blend.index[:, :, 0]), followed)


register(Selection, ("leaders", "blend"))
register(Following, ("blend", "state", "leaders", "stays"))


def _nearest(others: Tensor, stay: Tensor, number: int) -> Tensor:
    """(B, D, K) int64: the K tokens of ``stay`` (B, S, C) nearest to each of ``others`` (B, D, C)."""
    # ‖a − b‖² without ‖a‖², which is the same for all b
    near = 2 * others @ stay.transpose(1, 2) - stay.square().sum(dim=2).unsqueeze(1)
    return near.topk(min(number, stay.shape[1]), dim=2).indices


def _blend(place: Tensor, stay: int, nearest: Tensor, dtype: torch.dtype) -> Blend:
    """Each old token as itself where its ``place`` (B, M) is among the first ones, that ``stay``; else as the mean of
    its ``nearest`` (B, M - stay, K)."""
    batch, _, number = nearest.shape
    own = torch.arange(stay, device=place.device).view(1, -1, 1).expand(batch, -1, number)
    alone = F.pad(torch.ones(batch, stay, 1, dtype=dtype, device=place.device), (0, number - 1))
    followed = alone.new_full(nearest.shape, 1 / number)
    index, weight = (torch.cat(parts, dim=1) for parts in ((own, nearest), (alone, followed)))
    return Blend(take_rows(index, place), take_rows(weight, place))
