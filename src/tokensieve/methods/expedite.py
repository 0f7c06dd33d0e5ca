"""Expedite (arXiv 2210.01035)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites
from tokensieve.methods._method import Method
from tokensieve.methods._superpixels import superpixels
from tokensieve.methods._view import Layout, View, plane_of
from tokensieve.ops.bands import Bands
from tokensieve.tokens.soft import SoftAssignment


@dataclass(frozen=True, kw_only=True)
class Expedite(Method):
    """Cluster the patches into soft superpixels, run on those, and blend every patch back from the most alike.

    Before one block the patches are clustered: centres start as average pools of a coarser grid of cells; ``rounds``
    times every patch belongs to the cells of a 5 × 5 window with weights softmax(−t · ‖x − c‖²) and every centre
    becomes their mean. The centres go through the remaining blocks. A reader of patches behind them gets each as the
    sum of the ``nearest`` clusters most alike to what the patch was, weighted by exp(−t · ‖x − c‖²). Made for pixel
    tasks without training: Segmenter ViT-L/16 at 640² 51.82 to 51.56 mIoU from 659 to 444 GFLOPs; depth on NYUv2,
    RMSE .357 to .362 from 560 to 439 [authors].

    Our choice: t follows the scale of the features; cells keep the aspect of the grid; a cluster carries the position
    of the patch in the middle of its cell; the most alike clusters are sought in the window, so that time and memory
    grow with the patches and not with their square, and their weights sum to one. The authors' code divides them by
    their Euclidean length and seeks them everywhere (``norm=l2``, ``search=image``); in Segmenter it norms the clusters
    before it blends them, where here the model's norm sees the blended patches. It must be the first method that
    removes tokens.

    Options:
        keep: clusters as a share of the patches: a grid of round(√keep · rows) × round(√keep · columns) cells. 28 × 28
            of 40 × 40 in the paper.
        sites: the 0-based block before which it acts, one at most; default 5 of 12, scaled to the depth, which is 10 of
            the 24 of ViT-L.
        rounds: of assigning patches and moving centres.
        window: cells, odd, in each direction that a patch may belong to.
        sharpness: t, 0.02 in the paper for ViT-L; None takes 64 over the variance of the image's patches, so that the
            scale of a model's features does not matter.
        nearest: clusters that a patch is blended from.
        norm: the weights of the way back are divided by their "sum" or their Euclidean length, "l2".
        search: clusters most alike are sought in the "window" or the whole "image".
    """

    keep: float = 0.49
    sites: tuple[int, ...] | None = None
    rounds: int = 5
    window: int = 5
    sharpness: float | None = None
    nearest: int = 20
    norm: Literal["sum", "l2"] = "sum"
    search: Literal["window", "image"] = "window"

    point = "before"
    knob = "keep"
    undivided = True
    gridded = True
    mixes = True
    paper = (
        "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning",
        "Liang et al.",
        2022,
        "2210.01035",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        require(self.sites is None or len(self.sites) <= 1, self, "sites", "one block, or none")
        require(self.rounds >= 1, self, "rounds", "1 or more")
        require(self.window >= 3 and self.window % 2 == 1, self, "window", "an odd number, 3 or more")
        require(self.sharpness is None or self.sharpness > 0, self, "sharpness", "above 0, or None")
        require(self.nearest >= 1, self, "nearest", "1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (5,), depth, self.name)

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the grid of clusters over a ``grid`` of patches."""
        rows, columns = (max(1, round(round(side * math.sqrt(self.keep), 6))) for side in grid)
        return rows, columns

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        height, width = self.cells(plane_of(layout.grid, self.name))
        return min(patches, height * width)

    def assign(self, view: View) -> SoftAssignment:
        assert view.plane is not None
        bands = Bands(*view.plane, *self.cells(view.plane), self.window // 2)
        everywhere = self.search == "image"
        cells, blend = superpixels(
            view.x, bands, self.rounds, self.sharpness, self.nearest, self.norm, everywhere=everywhere
        )
        return SoftAssignment(matrix=cells, restore=blend)
