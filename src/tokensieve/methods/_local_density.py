"""Density peaks among the patches of a grid, each compared with its nearest in space only (arXiv 2311.01197)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokensieve.ops.bands import Bands, products
from tokensieve.ops.rows import at_least_float32, complement, named, rank_descending
from tokensieve.ops.windows import Windows, window_products, windows_serve


def reach_of(count: int) -> int:
    """How many rows away the farthest of the ``count`` nearest cells of an endless grid lies."""
    side = math.isqrt(count) + 1
    offsets = sorted(
        (down * down + across * across, place)
        for place, (down, across) in enumerate(
            (down, across) for down in range(-side, side + 1) for across in range(-side, side + 1)
        )
    )
    width = 2 * side + 1
    return max(max(abs(place // width - side), abs(place % width - side)) for _, place in offsets[:count])


def nearest_in_space(rows: int, columns: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` cells nearest to each cell of a grid, itself not among them, the nearest first.

    Of equally near ones the upper, then the left comes first. Beyond the grid there are none.

    Returns:
        ``down``, ``across`` (count,) int64, the offsets, and ``there`` (rows · columns, count) bool, whether the grid
        has that cell.
    """
    reach = reach_of(count + 1)
    width = 2 * reach + 1
    place = torch.arange(width * width, device=device)
    down, across = place // width - reach, place % width - reach
    order = (down.square() + across.square()).argsort(stable=True)[1 : count + 1]
    down, across = down[order], across[order]
    cell = torch.arange(rows * columns, device=device).unsqueeze(1)
    row, column = cell // columns + down, cell % columns + across
    return down, across, (row >= 0) & (row < rows) & (column >= 0) & (column < columns)


def local_distances(x: Tensor, rows: int, columns: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """‖x_i − x_j‖ / √C from each patch to the ``count`` nearest in space, as ``nearest_in_space`` orders them.

    Args:
        x: (B, rows · columns, C).

    Returns:
        distances (B, N, count) in float32 or better, the patch numbers (N, count) of those neighbours, in range where
        there is none too, and whether there is one, (N, count) bool.
    """
    down, across, there = nearest_in_space(rows, columns, count, x.device)
    cell = torch.arange(rows * columns, device=x.device).unsqueeze(1)
    number = (cell // columns + down).clamp(0, rows - 1) * columns + (cell % columns + across).clamp(0, columns - 1)
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        norms = x.square().sum(dim=2)
        near = _products(x, Bands(rows, columns, rows, columns, reach_of(count + 1)), down, across)
        other = norms[:, number.flatten()].view(near.shape)
        squared = (norms.unsqueeze(2) + other - 2 * near).clamp(min=0) / x.shape[2]
    return squared.sqrt(), number, there


def _products(x: Tensor, bands: Bands, down: Tensor, across: Tensor) -> Tensor:
    """(B, N, count): inner products of patches (B, N, C) with their neighbours, anything where there is none."""
    if not torch.compiler.is_exporting() and windows_serve(x):
        windows = Windows(bands.rows, bands.columns, bands.rows, bands.columns, bands.reach)
        slots = (down + bands.reach) * (2 * bands.reach + 1) + across + bands.reach
        return window_products(x, x, windows).index_select(2, slots)
    cells = bands.cells(x)
    slot = torch.arange(bands.reach * bands.columns, device=x.device).unsqueeze(1)
    row = bands.reach + slot // bands.columns + down
    inside = row * bands.columns + (slot % bands.columns + across).clamp(0, bands.columns - 1)  # within three bands
    product = products(cells, cells)
    return bands.uncelled(product.gather(3, inside.expand(*product.shape[:3], -1)))


def local_density_peaks(
    x: Tensor, rows: int, columns: int, clusters: int, nearest: int, spatial: float, neighbours: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the patches of a grid around peaks of their density, by distances in features and in space.

    With λ = ``nearest``, α = ``spatial``: σ_ij = (1 − α)·‖x_i − x_j‖ / √C + α·rank_ij / λ where j is the rank_ij-th
    nearest patch in space to i, and infinite where it is not among the λ nearest. ρ_i = exp(−mean of σ_ij² over the
    ``neighbours`` least σ_ij); δ_i is the least σ_ij to a denser patch. Patches without a denser one near by are peaks.
    Centres are the densest peaks, and behind them the patches of the largest ρ·δ. A patch joins the centre of the least
    σ_ij; where there is none among its λ nearest it follows its nearest denser patch, and a peak that is no centre the
    centre before it in reading order, or the first of all. Of equal values the lower index is denser or higher, and
    what is nearer in space is nearer.

    Args:
        x: (B, rows · columns, C).
        clusters: centres, 1 to rows · columns.

    Returns:
        ``centres`` (B, clusters) ascending, ``others`` (B, N − clusters) ascending, ``onto`` (B, N − clusters): the
        place in ``centres`` of the centre that each of the others joins.
    """
    distance, number, there = local_distances(x.detach(), rows, columns, nearest)
    batch, length = distance.shape[:2]
    rank = torch.arange(1, nearest + 1, device=x.device, dtype=distance.dtype) / nearest
    sigma = ((1 - spatial) * distance + spatial * rank).masked_fill(~there, torch.inf)
    least = sigma.topk(min(neighbours, nearest), dim=2, largest=False).values
    counted = least.isfinite()
    mean = least.masked_fill(~counted, 0).square().sum(dim=2) / counted.sum(dim=2).clamp(min=1)
    density = -mean  # its logarithm, which no distance brings to zero

    def of_neighbours(values: Tensor) -> Tensor:
        """(B, N, λ): the values (B, N) of the neighbours."""
        return values[:, number.flatten()].view(batch, length, nearest)

    def neighbour(place: Tensor) -> Tensor:
        """(B, N): the patch at a place (B, N) among the neighbours."""
        return number.expand(batch, -1, -1).gather(2, place.unsqueeze(2)).squeeze(2)

    position = torch.arange(length, device=x.device).expand(batch, -1)
    own, other = density.unsqueeze(2), of_neighbours(density)
    denser = (other > own) | ((other == own) & (number < position.unsqueeze(2)))
    delta, parent = sigma.masked_fill(~denser, torch.inf).min(dim=2)
    peak = delta.isinf()
    order = rank_descending(torch.where(peak, density, density + delta.log()))
    order = order.gather(1, (~peak.gather(1, order)).int().sort(dim=1, stable=True).indices)
    centres = order[:, :clusters].sort(dim=1).values
    chosen = named(centres, length)
    place = chosen.cumsum(dim=1) - 1  # of the last centre up to each patch, in reading order
    best, which = sigma.masked_fill(of_neighbours(chosen) == 0, torch.inf).min(dim=2)
    follows = torch.where(peak, centres.gather(1, place.clamp(min=0)), neighbour(parent))
    follows = torch.where(best.isfinite(), neighbour(which), follows)
    follows = torch.where(chosen > 0, position, follows)
    for _ in range((rows * columns).bit_length()):
        follows = follows.gather(1, follows)
    others = complement(centres, length)
    return centres, others, place.gather(1, follows.gather(1, others))
