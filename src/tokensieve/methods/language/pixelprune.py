"""PixelPrune (arXiv 2604.00886): patches whose pixels a neighbour predicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods.language._input import PruningMethod


@dataclass(frozen=True, kw_only=True)
class PixelPrune(PruningMethod):
    """Leave out, before the tower, the patches whose pixels repeat those of a neighbour.

    A patch is what one feature is made of, 2 × 2 patches of the tower. It is predicted from those at its left (A),
    above it (B) and between these (C): by B where C is like A and not like B, else by A; in the first row by A, in the
    first column by B. It is left out where no value differs from its prediction by more than ``tau``, and "like" means
    the same. So areas of one colour go, and what repeats along rows or columns: much of a page or a screen, of a
    photograph hardly anything. The first patch always stays; those that stay keep their places, and images keep
    different numbers. Of a video every frame is pruned by itself. Values are those that the model is given, behind the
    processor. What is left out goes neither through the tower nor to the decoder. It is made for towers that take
    patches in one row (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5), and refused elsewhere.

    Options:
        tau: the largest difference that counts as a repetition; 0 leaves out what repeats exactly.
        positions: "kept" (those of the uncut sequence) or "compact" (counted anew).
    """

    tau: float = 0.0

    paper = (
        "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding",
        "Wang et al.",
        2026,
        "2604.00886",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0, self, "tau", "a number, 0 or more")

    def stays(self, pixels: Tensor) -> Tensor:
        differs = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        differs[0, 1:] = self._differ(pixels[0, 1:], pixels[0, :-1])
        differs[1:, 0] = self._differ(pixels[1:, 0], pixels[:-1, 0])
        left, above, corner = pixels[1:, :-1], pixels[:-1, 1:], pixels[:-1, :-1]
        by_above = ~self._differ(corner, left) & self._differ(corner, above)
        predicted = torch.where(by_above.unsqueeze(-1), above, left)
        differs[1:, 1:] = self._differ(pixels[1:, 1:], predicted)
        return differs

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        """(…) bool: whether two patches (…, P) differ in any value by more than ``tau``."""
        return (one - other).abs().amax(dim=-1) > self.tau
