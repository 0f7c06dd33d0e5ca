"""The token algebra: the state behind a decision. Pure functions that return a new state and touch nothing.

Everything a token-reduction method does is one of three things to the tokens present:

* ``Assignment``: each token leads a new one, moves onto one (merge, pool), or leaves (prune, skip);
* ``SoftAssignment``: every new token is a weighted sum of all, with its own way back;
* ``KeepMask``: nothing moves; a differentiable mask takes tokens out of attention while training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.ops.norm import Norm
from tokensieve.tokens.decision import Assignment, Decision, KeepMask, return_point
from tokensieve.tokens.move import add_spread, move_tokens
from tokensieve.tokens.node import changed
from tokensieve.tokens.record import Event
from tokensieve.tokens.restore import patches_at_originals
from tokensieve.tokens.rider import Moment, riding_on
from tokensieve.tokens.soft import SoftAssignment, mixed, rows_to_one
from tokensieve.tokens.state import Outer, Parked, Tokens, WayBack


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
        norm: what reads the tokens next, for ``Tokens.normed``; None where nothing asks for that.
    """
    riders = tokens.riders
    if riders:
        moment = Moment(block, point, method)
        riders = riding_on(riders, lambda rider: rider.follow(decision, moment))
    if isinstance(decision, KeepMask):
        mask = decision.mask if tokens.table.mask is None else tokens.table.mask * decision.mask
        # Tokens that are away must not bring the masks back that were there when they left.
        version = tokens.version + bool(tokens.back.parked)
        return tokens.changed(table=tokens.table.changed(mask=mask), riders=riders, version=version)
    if isinstance(decision, SoftAssignment):
        changes, returns = _mixed(tokens, decision, block, point), decision.until != "end"
    else:
        changes = _moved(tokens, decision, block, point, norm)
        returns = decision.dropped is not None and decision.until != "end"
    back: WayBack = changes["back"]
    after = changes["x"].shape[1] - tokens.prefix
    event = Event(block, point, method, tokens.count, after, back.group if back.outer is None else None, returns)
    return tokens.changed(**changes, riders=riders, version=tokens.version + 1, events=(*tokens.events, event))


def _moved(tokens: Tokens, assignment: Assignment, block: int, point: str, norm: Norm | None = None) -> dict[str, Any]:
    """What an assignment changes in the state."""
    table, back = tokens.table, tokens.back
    # The features, positions and sizes move in one kernel.
    before = tokens.sizes if table.alive is not None and assignment.joining is not None else table.size
    norm = norm if assignment.spread is None else None
    moved = move_tokens(tokens.x, back.group, table.rep, before, assignment, norm)
    x = moved.x if assignment.spread is None else add_spread(moved.x, tokens.x, assignment)
    # Tokens that leave are parked until they return, or stand on the canvas for good.
    parked, canvas = back.parked, back.canvas
    if assignment.dropped is not None or assignment.alive is not None or assignment.parts:
        if assignment.until == "end":
            canvas = patches_at_originals(tokens)
        else:
            due = return_point(assignment.until, block, point)
            parked = (*parked, _parked(tokens, assignment, moved.slots, x, due))
    return {
        "x": x,
        "normed": moved.normed,
        "table": table.join(assignment, moved.rep, moved.size, moved.size_bias),
        "back": changed(back, group=moved.group, canvas=canvas, parked=parked),
    }


def _parked(tokens: Tokens, assignment: Assignment, slots: Tensor, x: Tensor, due: tuple[int, bool]) -> Parked:
    """What brings the tokens back that an assignment lets sit out."""
    keep, dropped = assignment.keep, assignment.dropped
    dropped = keep[:, :0] if dropped is None else dropped
    if assignment.alive is not None:
        dropped = torch.cat([dropped, keep], dim=1)  # slots of padding hold tokens that left
    start = x if assignment.parts else None
    return Parked(tokens, slots, dropped, *due, tokens.version + 1, start)


def _mixed(tokens: Tokens, soft: SoftAssignment, block: int, point: str) -> dict[str, Any]:
    """What a soft assignment changes in the state."""
    matrix, way_back = soft.matrix, soft.restore
    if way_back is None:
        if not isinstance(matrix, Tensor):
            raise TokensieveError("a soft assignment by a Mixing names its way back: give restore, for example a Blend")
        way_back = rows_to_one(matrix.transpose(1, 2))
    patches = mixed(matrix, tokens.patches)
    table = tokens.table.mix(SoftAssignment(matrix=matrix, restore=way_back), tokens.sizes)
    positions = torch.arange(soft.count, device=patches.device).expand(patches.shape[0], -1)
    due = None if soft.until == "end" else return_point(soft.until, block, point)[0]
    return {
        "x": torch.cat([tokens.x[:, : tokens.prefix], patches], dim=1) if tokens.prefix else patches,
        "table": table,
        "back": WayBack(positions, outer=Outer(tokens, way_back, due), fill=tokens.back.fill),
    }
