"""What a method may answer: where every token present goes.

``Assignment`` moves whole tokens, ``SoftAssignment`` mixes them, ``KeepMask`` masks them while training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.ops import moving
from tokensieve.ops.rows import complement, invert
from tokensieve.tokens.soft import Blend, Mixing, SoftAssignment, rows_to_one
from tokensieve.utils.compiling import is_jit_tracing

Until = Literal["end", "block", "attention"] | int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where each of the M patch tokens present goes (indices count patch tokens only; prefix tokens never move).

    ``keep``, ``moved`` and ``dropped`` together name every one of the M tokens exactly once.

    Attributes:
        keep: (B, K) int64. New token j is led by old token ``keep[b, j]``, whose position it carries.
        moved: (B, R) int64 or None. Old tokens that merge into a new one.
        onto: (B, R) int64 in [-1, K). The new token that each moved one joins; -1 where it leaves for good instead, for
            methods that merge in one image and prune in the next (they give ``dropped`` too, however short).
        dropped: (B, D) int64 or None. Tokens that leave: their last value is given back.
        spread: (B, K, D) or None. How much of each dropped token is added to each new one before it leaves;
            ``reduce="mean"`` then divides by one plus the sum.
        weight: (B, M) or None. Weight of each token in a merge; None means its size (how many patches it stands for).
        reduce: "mean" divides by the summed weight; "sum" does not (EViT's fused token); "larger" takes in each channel
            the value that is largest in magnitude, the positive one of two that are equal, and knows no weight and no
            spread.
        until: when dropped tokens return: "end" (for good), "block" (after the block that follows the decision),
            "attention" (after that block's attention, before its MLP) or the number of the block before which they do.
        alive: (B, K) bool or None. Which of the K slots hold a token; the others are padding and count as dropped.
        soft: (B, M) or None. How sure it is that each token stays, differentiable. Where it is given, tokens that leave
            for good are masked and not removed while training, so that it has a gradient (straight-through).
        padding_onto: (B, K) int64 in [-1, K) or None. For slots of padding, the new token that their old one joins, as
            in ``onto``: how images merge different numbers of tokens. Slots that hold a token are not read.
        parts: whether moved tokens part again at ``until``, each with the value it had plus what the token it joined
            has changed by. Nothing else may move in between.
    """

    keep: Tensor
    moved: Tensor | None = None
    onto: Tensor | None = None
    dropped: Tensor | None = None
    spread: Tensor | None = None
    weight: Tensor | None = None
    reduce: Literal["mean", "sum", "larger"] = "mean"
    until: Until = "end"
    alive: Tensor | None = None
    soft: Tensor | None = None
    padding_onto: Tensor | None = None
    parts: bool = False

    @property
    def joining(self) -> tuple[Tensor, Tensor] | None:
        """(B, R) old tokens and the new ones they join, -1 for those that join none; those in padding included."""
        return moving.joining(self.keep, self.moved, self.onto, self.alive, self.padding_onto)

    @staticmethod
    def from_index(index: Tensor, count: int, weight: Tensor | None = None) -> Assignment:
        """An assignment from group numbers, as a clustering gives them.

        Args:
            index: (B, M) int64 in [0, count); every group must occur in every image.
            count: number of groups.
            weight: (B, M) or None, as in ``Assignment``.

        The first token of a group, by position, leads it.
        """
        order = index.sort(dim=1, stable=True).indices
        grouped = index.gather(1, order)
        first = F.pad(grouped[:, 1:] != grouped[:, :-1], (1, 0), value=True)
        leading = (~first).int().sort(dim=1, stable=True).indices
        keep, moved = order.gather(1, leading[:, :count]), order.gather(1, leading[:, count:])
        return Assignment(keep=keep, moved=moved, onto=index.gather(1, moved), weight=weight)


@dataclass(frozen=True, kw_only=True)
class KeepMask:
    """Training-time stand-in for removal: tokens stay, but attention sees them as far as ``mask`` lets it.

    Attributes:
        mask: (B, M), 1 keeps and 0 removes, differentiable (straight-through). Multiplied into earlier masks.
    """

    mask: Tensor


Decision = Assignment | SoftAssignment | KeepMask


def slots(assignment: Assignment) -> Tensor:
    """(B, M): the new token each old one goes to, -1 for those that leave."""
    return moving.slots(
        assignment.keep,
        assignment.moved,
        assignment.onto,
        assignment.dropped,
        assignment.alive,
        assignment.padding_onto,
    )


def return_point(until: Until, block: int, point: str) -> tuple[int, bool]:
    """(block, after its attention?) at which tokens parked at ``point`` of ``block`` return."""
    acting = block + 1 if point == "after" else block
    if until == "block":
        return acting + 1, False
    if until == "attention":
        return acting, True
    assert isinstance(until, int)
    return until, False


def averaging(decision: Assignment | SoftAssignment) -> Assignment | SoftAssignment:
    """The same decision for values that only ever average: a token made of several gets their weighted mean."""
    if isinstance(decision, Assignment):
        return replace(decision, reduce="mean")
    if isinstance(decision.matrix, Mixing):
        if not isinstance(decision.restore, Blend):
            raise TokensieveError(
                "a soft assignment by a Mixing needs a Blend as its way back for other values to follow"
            )
        return replace(decision, restore=decision.restore.averaging())
    # A way back that reads features says nothing about other values: those go back the way they came.
    back = rows_to_one(decision.restore) if isinstance(decision.restore, Tensor) else None
    return replace(decision, matrix=rows_to_one(decision.matrix), restore=back)


def check(assignment: Assignment, length: int) -> str | None:
    """Why ``assignment`` is not valid for ``length`` patch tokens, or None. Reads values: for tests and probes."""
    parts = [p for p in (assignment.keep, assignment.moved, assignment.dropped) if p is not None]
    named = torch.cat(parts, dim=1).sort(dim=1).values
    if named.shape[1] != length or not bool((named == torch.arange(length, device=named.device)).all()):
        return (
            f"keep, moved and dropped must together name each of the {length} patch tokens exactly once, "
            f"but they have shapes {[tuple(p.shape) for p in parts]}"
        )
    if (assignment.moved is None) != (assignment.onto is None):
        return "moved and onto go together: give both or neither"
    if assignment.onto is not None and assignment.onto.numel():
        if assignment.moved is None or assignment.onto.shape != assignment.moved.shape:
            return f"onto must have the shape of moved, got {tuple(assignment.onto.shape)}"
        low, high = int(assignment.onto.min()), int(assignment.onto.max())
        if low < -1 or high >= assignment.keep.shape[1]:
            return f"onto must lie in [-1, {assignment.keep.shape[1]}), got [{low}, {high}]"
        if low < 0 and (assignment.dropped is None or assignment.until != "end"):
            return "an onto of -1 needs dropped, which may be empty, and until='end'"
    if assignment.padding_onto is not None and (
        assignment.alive is None or assignment.padding_onto.shape != assignment.keep.shape
    ):
        return "padding_onto has the shape of keep and goes with alive"
    if assignment.reduce == "larger" and (assignment.weight is not None or assignment.spread is not None):
        return "reduce='larger' takes a value of one token whatever it weighs: leave weight and spread out"
    return None


def keep_only(keep: Tensor, length: int, until: Until = "end") -> Assignment:
    """Keep the tokens ``keep`` (B, K) of ``length``, drop the others ``until`` they return."""
    return Assignment(keep=keep, dropped=complement(keep, length), until=until)


def ragged(mask: Tensor, capacity: int | None = None) -> Assignment:
    """Keep a different number of tokens in every image.

    Args:
        mask: (B, M) bool, True where the token stays; at least one per image.
        capacity: slots per image; default the largest count in the batch (one host sync).
    """
    counts = mask.sum(dim=1)
    least, most = _extremes(counts) if capacity is None else (-1, capacity)
    order = (~mask).int().sort(dim=1, stable=True).indices
    slots = torch.arange(most, device=mask.device)
    alive = None if least == most else slots.unsqueeze(0) < counts.unsqueeze(1)
    return Assignment(keep=order[:, :most], dropped=order[:, most:], alive=alive)


def _extremes(counts: Tensor) -> tuple[int, int]:
    """The smallest and the largest of ``counts`` (B,), in one host sync; images of one length need no padding.

    Where there is no image, both are 1.
    """
    if is_jit_tracing():
        raise TokensieveError(
            "torch.jit.trace would write down how many tokens these images keep, and others keep another number: use "
            "torch.export or tokensieve export, or a method that leaves the same number in every image"
        )
    if torch._C._functorch.is_batchedtensor(counts):
        raise TokensieveError(
            "torch.vmap shows one image at a time and cannot be asked how many tokens each keeps: give the model the "
            "whole batch, whose images do not change one another's answers, or use a method that leaves the same "
            "number in every image"
        )
    if counts.shape[0] == 0:
        return 1, 1
    least, most = torch.stack(counts.aminmax()).tolist()
    return least, most


def ragged_merge(joins: Tensor, alive: Tensor | None = None, rank: Tensor | None = None) -> Assignment:
    """Merge a different number of tokens in every image.

    Args:
        joins: (B, M) int64, the token that each token joins, itself where it stays; no token joins one that moves.
        alive: (B, M) bool, which slots hold a token now; None when all do. The others stay padding.
        rank: (B, M) float, by which the tokens that stay are ordered, the lowest first; None by their places.

    Tokens that stay keep their order where they rank alike, so what an image becomes does not depend on its batch (one
    host sync). Where all images keep as many, there is no padding, and the merge is a plain one.
    """
    positions = torch.arange(joins.shape[1], device=joins.device)
    stays = joins == positions
    if alive is not None:
        stays = stays & alive
    counts = stays.sum(dim=1)
    least, capacity = _extremes(counts)
    padded = least < capacity
    rank = (~stays).int() if rank is None else rank.masked_fill(~stays, torch.inf)
    order = rank.sort(dim=1, stable=True).indices
    target = invert(order).gather(1, joins)
    if alive is not None:
        target = target.masked_fill(~alive, -1)
    keep, moved = order[:, :capacity], order[:, capacity:]
    if alive is None and not padded:
        return Assignment(keep=keep, moved=moved, onto=target.gather(1, moved))
    return Assignment(
        keep=keep,
        moved=moved,
        onto=target.gather(1, moved),
        dropped=keep[:, :0],
        alive=positions[:capacity] < counts.unsqueeze(1) if padded else None,
        padding_onto=target.gather(1, keep) if padded else None,
    )
