"""AiluRus (arXiv 2311.01197)."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, kept
from tokensieve.methods._local_density import local_density_peaks
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View
from tokensieve.tokens.decision import Assignment


@dataclass(frozen=True, kw_only=True)
class AiluRus(Method):
    """Adaptive resolution: early on, like neighbours become one patch; each gets its group's value back at the end.

    Before one early block the patches are clustered around density peaks by a distance in features and in space,
    (1 − α)·‖x_i − x_j‖/√C + α·rank/λ to the λ nearest patches in space and infinite beyond: where the image is flat few
    tokens are left, where it is busy many. The ceil(keep · N) patches of the highest density · distance to a denser one
    are centres, the others join their nearest centre, groups become their mean, and patches are given back by a gather.
    Made for pixel tasks: Segmenter ViT-L 48 % more images/s without fine-tuning, ×2.46 with it at −0.09 mIoU
    [authors]. Works without training.

    Our choice, as the public text leaves it open: α, λ and the share; ‖·‖/√C as in DPC-KNN; density over the
    ``neighbours`` nearest of the λ; the densest of its neighbourhood is always a centre before others are; patches
    near a border have fewer than λ neighbours; one that no centre is near follows its nearest denser neighbour. It
    must be the first method that removes tokens.

    Options:
        keep: share of the patches that is left.
        sites: the 0-based block before which it acts, one at most; default 2.
        spatial: α, how much the rank in space counts beside the distance in features, 0 to 1.
        nearest: λ, how many patches in space a patch is compared with.
        neighbours: nearest patches that the density averages over.
    """

    keep: float = 0.5
    sites: tuple[int, ...] | None = None
    spatial: float = 0.5
    nearest: int = 48
    neighbours: int = 5

    point = "before"
    knob = "keep"
    undivided = True
    paper = (
        "AiluRus: A Scalable ViT Framework for Dense Prediction",
        "Li et al.",
        2023,
        "2311.01197",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        require(self.sites is None or len(self.sites) <= 1, self, "sites", "one block, or none")
        require(0 <= self.spatial <= 1, self, "spatial", "between 0 and 1")
        require(self.nearest >= 1, self, "nearest", "1 or more")
        require(self.neighbours >= 1, self, "neighbours", "1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (min(2, depth - 1),) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return kept(patches, self.keep)

    def assign(self, view: View) -> Assignment:
        assert view.plane is not None
        centres, others, onto = local_density_peaks(
            view.x, *view.plane, view.keep, self.nearest, self.spatial, self.neighbours
        )
        return Assignment(keep=centres, moved=others, onto=onto)
