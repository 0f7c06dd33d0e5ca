"""DTEM's matching with a gradient (arXiv 2412.10569)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.ops.matching import similarity


def relaxed_matching(metric: Tensor, keep: Tensor, moved: Tensor, first: int, temperature: float) -> Tensor:
    """What ``bipartite_matching`` decides, with a gradient: how much of each token goes to each new one.

    Each a has a share in every b, the softmax of their cosines / temperature; the part of it that moves there is a
    sigmoid of its best cosine around the middle between the worst edge that merges and the best that does not. Those
    that merge move wholly, and by that part in the backward pass. Towards temperature 0 this is the matching.

    Args:
        metric: (B, M, D) what similarity is measured on.
        keep, moved: (B, K) and (B, R) as ``bipartite_matching`` gave them, at least one moved.
        first: parity (0 or 1) of the positions on side a.
        temperature: of the softmax and the sigmoid.

    Returns:
        (B, M, K) in float32 or better; rows sum to one.
    """
    cosines = similarity(metric[:, first::2], metric[:, 1 - first :: 2])
    batch, others = cosines.shape[0], cosines.shape[2]
    staying = keep.shape[1] - others  # of side a
    shares = (cosines / temperature).softmax(dim=2)
    best = cosines.amax(dim=2)
    ranked = best.sort(dim=1, descending=True, stable=True).values
    border = ranked[:, moved.shape[1] - 1 : moved.shape[1] + 1].mean(dim=1, keepdim=True)
    part = ((best - border) / temperature).sigmoid()
    place = torch.arange(cosines.shape[1], device=metric.device) * 2 + first
    own = (place.view(1, -1, 1) == keep[:, None, :staying]).to(shares.dtype)  # (B, I, staying)
    stays = own.sum(dim=2)
    goes = stays * part + (1 - stays) * (1 + part - part.detach())
    from_a = torch.cat([own * (1 - part).unsqueeze(2), shares * goes.unsqueeze(2)], dim=2)
    itself = torch.eye(others, dtype=shares.dtype, device=metric.device).expand(batch, -1, -1)
    from_b = torch.cat([shares.new_zeros(batch, others, staying), itself], dim=2)
    rows = torch.cat([from_a, from_b], dim=1)
    position = torch.arange(metric.shape[1], device=metric.device)
    order = torch.cat([position[first::2], position[1 - first :: 2]]).argsort()
    return rows[:, order]
