"""Two views of every image, cut, mirrored and coloured on the device, and points that stand in both."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A view shows at least this share of the image, between these shapes: then two views always overlap.
SMALLEST, NARROWEST = 0.4, 3 / 4
CONTRAST, SHIFT, GREY = 0.4, 0.4, 0.2  # of the colours: a factor up to 1 ± 0.4, a shift up to 0.4 standard deviations


class Views(NamedTuple):
    """Two views.

    Attributes:
        images: of each, (B, C, H, W).
        points: of each, (B, R, 2): where the same R points of the image are in it, (x, y) in [-1, 1].
    """

    images: tuple[Tensor, Tensor]
    points: tuple[Tensor, Tensor]


class Frames(NamedTuple):
    """Where views are cut, in coordinates (x, y) that run over the image from -1 to 1.

    Attributes:
        centre, half: (B, 2) centre and half of the sides.
        mirror: (B, 1), -1 for a view that is mirrored left to right, else 1.
    """

    centre: Tensor
    half: Tensor
    mirror: Tensor

    def within(self, points: Tensor) -> Tensor:
        """Points (B, R, 2) of the image as coordinates of the view."""
        flipped = torch.cat([self.mirror, torch.ones_like(self.mirror)], dim=1)
        return (points - self.centre.unsqueeze(1)) / self.half.unsqueeze(1) * flipped.unsqueeze(1)


def draw_views(images: Tensor, count: int, colours: bool = True) -> Views:
    """Two views of every image and ``count`` points of their overlap, drawn from torch's generator.

    Args:
        images: (B, C, H, W), normalised; views have the same size.
        count: R.
        colours: whether each view gets colours of its own.
    """
    frames = [_draw_frames(images) for _ in range(2)]
    low = torch.maximum(*(frame.centre - frame.half for frame in frames))
    high = torch.minimum(*(frame.centre + frame.half for frame in frames))
    share = torch.rand(images.shape[0], count, 2, device=images.device)
    points = low.unsqueeze(1) + share * (high - low).unsqueeze(1)
    first, second = (_cut(images, frame, colours) for frame in frames)
    return Views((first, second), (frames[0].within(points), frames[1].within(points)))


def _draw_frames(images: Tensor) -> Frames:
    """One view of each image: the share it shows is even, its shape is even in logarithm."""
    batch, device = images.shape[0], images.device
    area = SMALLEST + (1 - SMALLEST) * torch.rand(batch, device=device)
    shape = torch.exp((2 * torch.rand(batch, device=device) - 1) * math.log(1 / NARROWEST))
    half = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], dim=1).clamp(max=1)
    centre = (2 * torch.rand(batch, 2, device=device) - 1) * (1 - half)
    mirror = torch.where(torch.rand(batch, 1, device=device) < 0.5, -1.0, 1.0)
    return Frames(centre, half, mirror)


def _cut(images: Tensor, frame: Frames, colours: bool) -> Tensor:
    zero = torch.zeros_like(frame.mirror)
    across = torch.cat([frame.half[:, :1] * frame.mirror, zero, frame.centre[:, :1]], dim=1)
    down = torch.cat([zero, frame.half[:, 1:], frame.centre[:, 1:]], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
    return _colour(views) if colours else views


def _colour(views: Tensor) -> Tensor:
    """Another contrast and brightness for every view, and no colours for some."""
    batch, device = views.shape[0], views.device
    draws = torch.rand(3, batch, 1, 1, 1, device=device)
    grey = views.mean(dim=1, keepdim=True).expand_as(views)
    views = torch.where(draws[0] < GREY, grey, views)
    return views * (1 + CONTRAST * (2 * draws[1] - 1)) + SHIFT * (2 * draws[2] - 1)
