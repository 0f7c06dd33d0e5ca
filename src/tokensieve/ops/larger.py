"""Of several tokens, in each channel, the value that is largest in magnitude."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokensieve.ops.rows import take_rows


def larger_of(lead: Tensor, members: Tensor, onto: Tensor) -> Tensor:
    """What groups of tokens become, sign kept; of two values equal in magnitude the positive one.

    That does not depend on their order, so one merge after another gives what both give at once. A NaN in any member is
    one in the answer. The gradient is that of the value taken, shared out where several are equal.

    Args:
        lead: (B, K, C) one token of each group.
        members: (B, R, C) the others, R at least 1.
        onto: (B, R) int64 in [-1, K), the group of each; -1 for those that are in none.

    Returns:
        (B, K, C); a group of one as it is, bit for bit.
    """
    place, order = onto.sort(dim=1)
    high = low = take_rows(members, order)
    # Behind each step a row has seen twice as many rows of its group from itself on, and so the first sees all of them:
    # a scatter by the maximum reads element by element, and some exported formats have none.
    step = 1
    while step < onto.shape[1]:
        same = (place[:, :-step] == place[:, step:]).unsqueeze(2)
        high, low = _seen(high, same, step, torch.maximum), _seen(low, same, step, torch.minimum)
        step *= 2
    groups = torch.arange(lead.shape[1], device=lead.device)
    first = (onto.unsqueeze(1) < groups.view(1, -1, 1)).sum(dim=2).clamp(max=onto.shape[1] - 1)
    joined = (place.gather(1, first) == groups).unsqueeze(2)
    high, low = (torch.where(joined, take_rows(side, first), lead) for side in (high, low))
    high, low = torch.maximum(high, lead), torch.minimum(low, lead)
    return torch.where(high >= -low, high, low)


def _seen(rows: Tensor, same: Tensor, step: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Rows (B, R, C), each with the one ``step`` behind it where that is of the ``same`` group (B, R - step, 1)."""
    front = rows[:, :-step]
    return torch.cat([torch.where(same, of(front, rows[:, step:]), front), rows[:, -step:]], dim=1)
