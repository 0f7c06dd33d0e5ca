"""VidCom2 (arXiv 2505.14454): more tokens of the frames that are unlike the video, and in each the unlike ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._frames import frames_of
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, in_order
from tokensieve.ops.rows import at_least_float32, rank_descending, unit_rows

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # of the Gaussians that likeness is summed over


@dataclass(frozen=True, kw_only=True)
class VidCom2(PrefixMethod):
    """Give each frame of a video a budget by how unlike the video it is, and keep the unlike tokens of each frame.

    On the half of the channels with the lowest variance over the video, likeness to a mean is
    g = Σ over k = −3 … 1 of exp(−d² / (2 · 2^k)). With R the share of tokens kept, frame t gets R (1 + p_t − p̄) of its
    own, p the softmax over frames of −(mean of g to the video's mean) / 0.01; in it those stay whose g to the video's
    mean plus g to the frame's is lowest. Ties go to the lower index.

    Our choice: features are brought to length one on those channels, since Gaussians of these widths vanish between
    longer ones; budgets are rounded so that they sum to the count, the largest remainders first; and what a full frame
    cannot take goes to the others in equal parts. It is refused where the features are those of no video, or do not lie
    frame by frame.

    Options:
        keep: share of a video's tokens to keep, in (0, 1].
        tokens: their number, in place of ``keep``.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
        temperature: of the softmax over frames.
    """

    temperature: float = 0.01

    paper = (
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        "Liu et al.",
        2025,
        "2505.14454",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, self, "temperature", "above 0")

    def choose(self, view: PrefixView) -> Kept:
        _, frames, places, _ = frames_of(view).shape
        unit = unit_rows(steady_channels(at_least_float32(view.features))).unflatten(1, (frames, places))
        to_video = likeness(unit, unit.mean(dim=(1, 2), keepdim=True))
        to_frame = likeness(unit, unit.mean(dim=2, keepdim=True))
        share = (-to_video.mean(dim=2) / self.temperature).softmax(dim=1)
        budget = view.count / frames * (1 + share - share.mean(dim=1, keepdim=True))
        number = whole_budgets(budget, view.count, places)
        rank = (to_video + to_frame).sort(dim=2, stable=True).indices.argsort(dim=2)
        stays = (rank < number.unsqueeze(2)).flatten(1)
        return Kept(in_order(rank_descending(stays.int())[:, : view.count]))


def steady_channels(features: Tensor) -> Tensor:
    """(B, N, ⌈C / 2⌉) of (B, N, C): the half of the channels whose variance over the N is lowest, in their order."""
    variance = features.var(dim=1, correction=0)
    half = in_order(variance.sort(dim=1, stable=True).indices[:, : (features.shape[2] + 1) // 2])
    return features.gather(2, half.unsqueeze(1).expand(-1, features.shape[1], -1))


def likeness(features: Tensor, mean: Tensor) -> Tensor:
    """(B, T, P) likeness of (B, T, P, C) to a mean that broadcasts: Gaussians of the distance, summed over widths."""
    squared = (features - mean).square().sum(dim=3)
    return torch.stack([(squared / (-2 * width)).exp() for width in WIDTHS]).sum(dim=0)


def whole_budgets(budget: Tensor, count: int, most: int) -> Tensor:
    """Budgets as whole numbers that sum to ``count``, none above ``most``.

    Every token that a frame could take is ranked by what is left of the frame's budget before it: the whole parts come
    first, then the largest remainders, then one more of every frame in turn.

    Args:
        budget: (B, T), 0 or more.
        count: at most T · most.
        most: P.

    Returns:
        (B, T) int64.
    """
    before = torch.arange(most, device=budget.device, dtype=budget.dtype)
    left = (budget.unsqueeze(2) - before).flatten(1)
    given = torch.zeros_like(left, dtype=torch.int64).scatter(1, rank_descending(left)[:, :count], 1)
    return given.view(*budget.shape, most).sum(dim=2)
