"""Greedy choices as one loop of an exported graph, where unrolled steps would be thousands of nodes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop


def farthest_in_graph(features: Tensor, count: int) -> Tensor:
    """(B, count) int64: the max–min diverse rows of (B, N, C) that ``divprune.farthest`` chooses, while exporting."""
    unit = F.normalize(features.float(), dim=2)
    images, number, _ = unit.shape
    distance = 1 - unit @ unit.transpose(1, 2)
    place = torch.arange(number, device=unit.device)
    own = place.unsqueeze(1) == place
    first = distance.masked_fill(own, torch.inf).amin(dim=2).argmax(dim=1)
    distance = distance.masked_fill(own, 0)
    steps = torch.arange(count, device=unit.device)

    def goes_on(step: Tensor, nearest: Tensor, last: Tensor, chosen: Tensor) -> Tensor:
        return step < count

    def next_one(step: Tensor, nearest: Tensor, last: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        row = distance.gather(1, last.view(-1, 1, 1).expand(-1, 1, number)).squeeze(1)
        nearest = nearest.minimum(row).masked_fill(place == last.unsqueeze(1), -torch.inf)
        last = nearest.argmax(dim=1)
        return step + 1, nearest, last, torch.where(steps == step, last.unsqueeze(1), chosen)

    start = (
        torch.ones((), dtype=torch.int64, device=unit.device),
        distance.new_full((images, number), torch.inf),
        first,
        torch.where(steps == 0, first.unsqueeze(1), 0),
    )
    found: Any = while_loop(goes_on, next_one, start)
    chosen: Tensor = found[3]
    return chosen
