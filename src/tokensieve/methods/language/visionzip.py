"""VisionZip (arXiv 2412.04467): the tokens that the tower attends to, and a few that stand for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView
from tokensieve.ops.rows import complement, one_hot, split_top, take_rows, unit_rows


@dataclass(frozen=True, kw_only=True)
class VisionZip(PrefixMethod):
    """Keep the dominant tokens, and merge the others around evenly spaced ones.

    Dominant are those of the highest class attention, summed over heads, in the last-but-one block of the tower
    (attention received where it has no class token). Of the others every step-th is a target; each of the rest goes to
    the target whose keys are most alike by cosine, and the target becomes itself plus the mean of those that came.

    Options:
        keep: share of an image's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        contextual: share of the kept tokens that are targets; published: 10 of 64, 30 of 192.
    """

    contextual: float = 0.156

    paper = (
        "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        "Yang et al.",
        2024,
        "2412.04467",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.contextual < 1, self, "contextual", "a share in [0, 1)")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 2,)

    def choose(self, view: PrefixView) -> Kept:
        seen, count = view.tower, view.count
        targets = min(count - 1, round(self.contextual * count))
        dominant, rest = split_top(seen.importance, count - targets)
        if not targets:
            return Kept(dominant)
        step = max(1, rest.shape[1] // targets)
        first = torch.arange(targets, device=rest.device) * step
        target, joining = rest[:, first], rest[:, complement(first.unsqueeze(0), rest.shape[1])[0]]
        merged = _with_mean_of_members(view.features, seen.keys, target, joining)
        places = torch.cat([dominant, target], dim=1)
        values = torch.cat([take_rows(view.features, dominant), merged], dim=1)
        in_order = places.argsort(dim=1)
        return Kept(places.gather(1, in_order), take_rows(values, in_order))


def _with_mean_of_members(features: Tensor, keys: Tensor, target: Tensor, joining: Tensor) -> Tensor:
    """(B, T, C) each target's feature plus the mean of those that are most like it by their keys."""
    unit = unit_rows(keys)
    own = take_rows(features, target)
    if not joining.shape[1]:
        return own
    likeness = take_rows(unit, joining) @ take_rows(unit, target).transpose(1, 2)
    member = one_hot(likeness.argmax(dim=2), target.shape[1], features.dtype)
    number = member.sum(dim=2, keepdim=True).clamp(min=1)
    return own + member @ take_rows(features, joining) / number
