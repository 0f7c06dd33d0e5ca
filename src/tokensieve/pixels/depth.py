"""Monocular depth: metres for every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.measure.judge import Meters
from tokensieve.pixels.task import Task, plane

NYU_SIZE = (480, 640)
EIGEN_ROWS, EIGEN_COLUMNS = slice(45, 471), slice(41, 601)  # what Eigen et al. evaluate NYU on


@dataclass(frozen=True, kw_only=True)
class Depth(Task):
    """Metres for every pixel, learned by the scale-invariant logarithmic loss.

    Pixels whose depth is 0, not finite, or outside ``min_depth`` to ``max_depth`` are not valid and do not count.

    Attributes:
        max_depth: the largest depth in metres; predictions are a sigmoid times this.
        min_depth: the smallest depth that counts, and that is predicted.
        depth_scale: stored values per metre: 1000 for millimetres, 1 for metres, 256 for KITTI, 5000 for TUM. None
            takes whole numbers for millimetres and floating-point numbers for metres.
        median_scaling: scale each prediction to its target's median before it is measured, for depth up to a factor.
        eigen_crop: measure inside Eigen's crop of NYU's 640 × 480 pixels only.
    """

    max_depth: float = 10.0
    min_depth: float = 1e-3
    depth_scale: float | None = None
    median_scaling: bool = False
    eigen_crop: bool = False

    name = "depth"
    crops = False
    folders = ("depth", "depths")
    endings = (".png", ".tif", ".tiff", ".npy")
    rising = ("delta1", "delta2", "delta3")

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth < math.inf:
            raise TokensieveError(
                f"depths must satisfy 0 < min_depth < max_depth, got {self.min_depth:g} and {self.max_depth:g} metres"
            )
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            raise TokensieveError(f"--depth-scale is stored values per metre, above 0, got {self.depth_scale:g}")

    @property
    def channels(self) -> int:
        return 1

    def activate(self, outputs: Tensor) -> Tensor:
        return (outputs.sigmoid() * self.max_depth).clamp(min=self.min_depth)

    def target(self, raw: NDArray[Any], name: str) -> Tensor:
        depth = plane(raw, name)
        if depth.dtype == np.uint8:
            raise TokensieveError(
                f"the depth {name} has 8 bits a pixel, too few for depth: expected a 16-bit PNG, TIFF or .npy"
            )
        scale = self.depth_scale or (1.0 if depth.dtype.kind == "f" else 1000.0)
        return torch.from_numpy(depth.astype(np.float32) / np.float32(scale))

    @property
    def counts(self) -> str:
        return f"depths from {self.min_depth:g} to {self.max_depth:g} metres count, see --depth-scale and --max-depth"

    def valid(self, target: Tensor) -> Tensor:
        return torch.isfinite(target) & (target >= self.min_depth) & (target <= self.max_depth)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        valid = self.valid(targets)
        found = answers[:, 0].float()
        if not bool(valid.any()):
            return found.sum() * 0
        difference = found[valid].log() - targets[valid].log()
        return (difference.square().mean() - 0.85 * difference.mean().square()).clamp(min=1e-12).sqrt()

    def decide(self, answer: Tensor) -> Tensor:
        return answer[0]

    def meters(self) -> Meters:
        from tokensieve.pixels.meters import DepthMeters  # torchmetrics is slow to import

        return DepthMeters(self)

    def counted(self, target: Tensor, name: str = "the target") -> Tensor:
        """Which pixels of (H, W) metres are measured: valid ones, inside the crop where there is one.

        Raises:
            TokensieveError: Eigen's crop of another size than NYU's.
        """
        valid = self.valid(target)
        if not self.eigen_crop:
            return valid
        if tuple(target.shape) != NYU_SIZE:
            raise TokensieveError(
                f"Eigen's crop is of NYU's 640 × 480 pixels and {name} has {target.shape[1]} × {target.shape[0]}: "
                "leave --eigen-crop out"
            )
        inside = torch.zeros_like(valid)
        inside[EIGEN_ROWS, EIGEN_COLUMNS] = True
        return valid & inside
