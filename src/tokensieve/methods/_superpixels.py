"""Soft superpixels: patches clustered around the cells of a coarser grid, and the way back (arXiv 2210.01035)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.ops.bands import Bands
from tokensieve.ops.rows import at_least_float32
from tokensieve.ops.windows import Windows, windows_serve
from tokensieve.tokens.soft import Blend, Mixing

# Of the relative sharpness: t = 1.7 behind block 4 of DeiT-Tiny, which lost least at t = 1 and 2.
RELATIVE = 64.0


@dataclass(frozen=True)
class Cells(Mixing):
    """How far each patch belongs to the cells near it: ``weights`` (B, K, Q, T) as ``near`` has them, rows sum to 1."""

    near: Bands | Windows
    weights: Tensor
    leaders: Tensor

    def share(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return self.near.collect(self.weights, self.near.patches(values.to(self.weights.dtype)))

    def mean(self, values: Tensor) -> Tensor:
        return self.share(values) / self.totals().clamp(min=torch.finfo(self.weights.dtype).tiny)

    def totals(self) -> Tensor:
        """(B, S, 1): how many patches each cell has collected."""
        return self.near.collect(self.weights, torch.ones_like(self.weights[..., :1]))


def pooled(x: Tensor, bands: Bands) -> Tensor:
    """Adaptive average pooling: patches (B, rows · columns, C) to cells (B, height · width, C)."""
    image = x.reshape(x.shape[0], bands.rows, bands.columns, x.shape[2]).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(image, (bands.height, bands.width)).flatten(2).transpose(1, 2)


def middles(bands: Bands, device: torch.device) -> Tensor:
    """(S,) int64: the patch in the middle of each cell."""
    row = (2 * torch.arange(bands.height, device=device) + 1) * bands.rows // (2 * bands.height)
    column = (2 * torch.arange(bands.width, device=device) + 1) * bands.columns // (2 * bands.width)
    return (row.unsqueeze(1) * bands.columns + column).flatten()


def relative_sharpness(x: Tensor) -> Tensor:
    """t for features of any scale: RELATIVE over the variance of each image's patches ``x`` (B, N, C), (B, 1, 1, 1)."""
    size = torch.linalg.vector_norm(x, dim=2).square().mean(dim=1)
    variance = (size - x.mean(dim=1).square().sum(dim=1)).clamp(min=0)
    least = 16 * torch.finfo(x.dtype).eps * size + torch.finfo(x.dtype).tiny  # rounding, where all patches are alike
    sharpness: Tensor = RELATIVE / (variance + least)
    return sharpness.view(-1, 1, 1, 1)


def superpixels(
    x: Tensor,
    bands: Bands,
    rounds: int,
    sharpness: float | None,
    nearest: int,
    norm: Literal["sum", "l2"] = "sum",
    everywhere: bool = False,
) -> tuple[Cells, Blend]:
    """Cluster patches around the cells of a grid, and say how they are made from the clusters again.

    Centres start as adaptive average pools. In each round a patch x_p belongs to the cells near its own with weights
    softmax(−t · ‖x_p − c_i‖²), and every centre becomes the mean of its patches. Behind the last round
    w_pi = exp(−t · ‖x_p − c_i‖²) over the ``nearest`` most alike centres is the way back.

    Args:
        x: (B, rows · columns, C).
        bands: the grids; ``reach`` is how many cells away a cell may be that a patch belongs to.
        rounds: 1 or more.
        sharpness: t, or None for ``relative_sharpness``.
        nearest: how many centres give a patch back.
        norm: whether the weights of the way back are divided by their sum or by their Euclidean length.
        everywhere: whether those centres are sought in the whole image, or only among the cells near the patch.

    Returns:
        the soft clusters and the way back, in float32 or better.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        sharp = relative_sharpness(x) if sharpness is None else x.new_full((1, 1, 1, 1), sharpness)
        near = _near(bands, x)
        patches, centres = near.patches(x), pooled(x, bands)
        close, there = near.near(x.device)
        closed = torch.zeros(close.shape, dtype=x.dtype, device=x.device).masked_fill(~close, -torch.inf)
        leaders = middles(bands, x.device).expand(x.shape[0], -1)
        for _ in range(rounds):
            weights = (_likeness(patches, centres, near, sharp) + closed).softmax(dim=3)
            cells = Cells(near, weights * there.unsqueeze(2).to(x.dtype), leaders)
            totals = cells.totals()
            # A cell that every patch is far from keeps its centre.
            means = cells.share(x) / totals.clamp(min=torch.finfo(x.dtype).tiny)
            centres = torch.where(totals > 0, means, centres)
        if everywhere:
            likeness = sharp.squeeze(1) * (2 * x @ centres.transpose(1, 2) - centres.square().sum(dim=2).unsqueeze(1))
            best, index = likeness.topk(min(nearest, likeness.shape[2]), dim=2)
        else:
            likeness = _likeness(patches, centres, near, sharp) + closed
            best, place = likeness.topk(min(nearest, likeness.shape[3]), dim=3)
            found = near.numbers(x.device).expand_as(likeness).gather(3, place)
            best, index = near.unpatched(best), near.unpatched(found)
        raw = (best - best[..., :1]).exp()
        length = raw.sum(dim=2, keepdim=True) if norm == "sum" else raw.norm(dim=2, keepdim=True)
    return cells, Blend(index, raw / length)


def _near(bands: Bands, x: Tensor) -> Bands | Windows:
    """Windows where the CPU kernels take them, else the bands themselves, whose products every device has."""
    if torch.compiler.is_exporting() or not windows_serve(x):
        return bands
    return Windows(bands.rows, bands.columns, bands.height, bands.width, bands.reach)


def _likeness(patches: Tensor, centres: Tensor, near: Bands | Windows, sharp: Tensor) -> Tensor:
    """(B, K, Q, T): −t · ‖x_p − c_i‖² but for a part that is the same for all centres of a patch."""
    return sharp * (2 * near.inner(patches, centres) - near.beside(centres.square().sum(dim=2)))
