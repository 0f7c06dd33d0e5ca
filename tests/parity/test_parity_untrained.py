"""The methods that need no training beyond the first ones, each against plain loops on a whole tiny ViT in float64."""

from __future__ import annotations

import math

import pytest
import reference_untrained as reference
from harness import SITES, compare, tiny
from torch import Tensor

import tokensieve as ts


@pytest.mark.parametrize("r", [3, 9, 40])
@pytest.mark.parametrize("threshold", [0.0, math.inf, 5e-3])
@pytest.mark.parametrize("proportional", [True, False])
def test_ppt(images: Tensor, r: int, threshold: float, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.PPT(r=r, sites=SITES, threshold=threshold, proportional=proportional))
    compare(model, images, middle=reference.ppt(SITES, r, threshold), log_size=proportional)


def test_ppt_prunes_in_one_image_and_merges_in_another(images: Tensor) -> None:
    state = ts.trace(ts.apply(tiny(), ts.PPT(r=9, sites=(1,), threshold=5e-3)), images).tokens
    assert state is not None
    gone = (state.group < 0).sum(dim=1)
    assert set(gone.tolist()) == {0, 9}
