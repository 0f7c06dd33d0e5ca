"""Masks that stand in for removal while a model trains: the same decisions, the same answer, and a gradient.

A token that leaves for good moves behind the others, and from then on no other token sees it: its key is masked. It is
``hidden``: methods are shown the tokens that removal would have left, in the same order, and decide alike. What the
mask adds is that attention says how much each removed token was missed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.tokens import algebra
from tokensieve.tokens.decision import Assignment, Decision, KeepMask
from tokensieve.tokens.restore import patches_at_originals, visible
from tokensieve.tokens.rider import Moment, riding_on
from tokensieve.tokens.soft import SoftAssignment
from tokensieve.tokens.state import Tokens


def stands_in(decision: Decision) -> TypeGuard[Assignment]:
    """Whether a mask can stand in for ``decision``: it only lets tokens go, wholly and for good."""
    return (
        isinstance(decision, Assignment)
        and decision.until == "end"
        and decision.alive is None
        and decision.dropped is not None
        and decision.spread is None
        and (decision.moved is None or not decision.moved.shape[1])
    )


def among_hidden(tokens: Tokens, decision: Decision) -> Decision:
    """A decision on the visible tokens as one on all of them: those that are hidden stay as they are, behind.

    Raises:
        TokensieveError: a soft assignment, which would mix what is hidden with the rest.
    """
    if not tokens.hidden:
        return decision
    batch = tokens.x.shape[0]
    if isinstance(decision, KeepMask):
        return KeepMask(mask=torch.cat([decision.mask, decision.mask.new_ones(batch, tokens.hidden)], dim=1))
    if isinstance(decision, SoftAssignment) or decision.alive is not None:
        raise TokensieveError(
            "tokens are masked and not removed here, and a method behind it mixes all tokens or keeps a different "
            "number in every image: train it without masks, or alone"
        )
    left = tokens.count - tokens.hidden
    behind = torch.arange(left, tokens.count, device=tokens.x.device).expand(batch, -1)
    weight = decision.weight
    if weight is not None:
        weight = torch.cat([weight, weight.new_ones(batch, tokens.hidden)], dim=1)
    spread = None if decision.spread is None else F.pad(decision.spread, (0, 0, 0, tokens.hidden))
    return replace(decision, keep=torch.cat([decision.keep, behind], dim=1), weight=weight, spread=spread)


def hide(tokens: Tokens, assignment: Assignment, block: int = 0, point: str = "middle", method: str = "") -> Tokens:
    """The state in which the tokens that ``assignment`` drops are hidden.

    Args:
        tokens: the state.
        assignment: over its visible tokens; ``stands_in`` holds for it.
        block, point, method: where it happened, for the record.
    """
    assert assignment.dropped is not None
    before, leaving = visible(tokens), assignment.dropped.shape[1]
    # All stay: those kept in front, in their order, then those that leave, then those hidden before.
    order = torch.cat([assignment.keep, assignment.dropped], dim=1)
    alone = tokens.changed(riders={})
    after = algebra.apply(alone, among_hidden(tokens, Assignment(keep=order)), block, point, method)
    # The mask takes those that leave out of attention, with a gradient where the choice has one.
    mask = hard_mask(assignment)
    if assignment.soft is not None:
        soft = assignment.soft.gather(1, order)
        mask = mask.to(soft.dtype) + (soft - soft.detach())
    after = algebra.apply(after, among_hidden(after.changed(hidden=tokens.hidden), KeepMask(mask=mask)))
    # The record and the riders see a removal.
    left, event = assignment.keep.shape[1], after.events[-1]
    event = replace(event, before=before.count, after=left, group=_shown(after.back.group, left))
    moment = Moment(block, point, method)
    back = after.back
    if tokens.back.fill == "last":
        back = replace(back, canvas=patches_at_originals(before))
    return after.changed(
        hidden=tokens.hidden + leaving,
        back=back,
        events=(*after.events[:-1], event),
        riders=riding_on(tokens.riders, lambda rider: rider.hide(assignment, moment)),
    )


def hard_mask(assignment: Assignment) -> Tensor:
    """(B, K + D), in float32: 1 for the tokens kept and 0 for those dropped, in this order."""
    assert assignment.dropped is not None
    kept = torch.ones(assignment.keep.shape, device=assignment.keep.device)
    return torch.cat([kept, torch.zeros(assignment.dropped.shape, device=kept.device)], dim=1)


def _shown(group: Tensor, left: int) -> Tensor:
    return torch.where(group < left, group, -1)
