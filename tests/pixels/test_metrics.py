"""Segmentation and depth metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tokensieve.errors import TokensieveError
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.meters import DepthMeters, SegmentationMeters, depth_errors
from tokensieve.pixels.segmentation import Segmentation


def test_segmentation_by_hand() -> None:
    meters = SegmentationMeters(Segmentation(classes=4))
    found = torch.tensor([[0, 0, 1], [1, 1, 2]])
    right = torch.tensor([[0, 1, 1], [1, 255, 0]])
    meters.update([found.short()], [found.short()], [right])
    outcome = meters.compute()
    # Valid pixels: (0,0) (0,1) (1,1) (1,1) (2,0). IoU of 0: 1/3, of 1: 2/3, of 2: 0; class 3 does not occur.
    assert outcome.metrics["mIoU"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)
    assert outcome.metrics["pixel_accuracy"] == pytest.approx(100 * 3 / 5)
    assert outcome.metrics["agreement"] == 100


def test_two_halves_are_the_whole() -> None:
    task = Segmentation(classes=3)
    answers, dense, right = (torch.randint(0, 3, (4, 5, 6)) for _ in range(3))
    whole, first, second = (SegmentationMeters(task) for _ in range(3))
    whole.update(list(answers), list(dense), list(right))
    first.update(list(answers[:1]), list(dense[:1]), list(right[:1]))
    second.update(list(answers[1:]), list(dense[1:]), list(right[1:]))
    first.add(second)
    assert first.compute() == whole.compute()
    depths, wanted = (torch.rand(4, 5, 6) + 0.5 for _ in range(2))
    meters, one, two = (DepthMeters(Depth()) for _ in range(3))
    meters.update(list(depths), list(depths), list(wanted))
    two.update(list(depths[2:]), list(depths[2:]), list(wanted[2:]))
    one.update(list(depths[:2]), list(depths[:2]), list(wanted[:2]))
    two.add(one)
    assert two.compute() == meters.compute()


def test_depth_errors_by_hand() -> None:
    errors = depth_errors(torch.tensor([1.0, 2.0, 8.0]), torch.tensor([1.0, 4.0, 4.0]))
    assert errors["AbsRel"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert errors["RMSE"] == pytest.approx(math.sqrt((0 + 4 + 16) / 3))
    assert errors["log10"] == pytest.approx((0 + math.log10(2) + math.log10(2)) / 3)
    assert (errors["delta1"], errors["delta2"]) == pytest.approx((100 / 3, 100 / 3))
    assert errors["delta3"] == pytest.approx(100 / 3)  # a ratio of 2 is above 1.25³ = 1.953
    # e = 0, −ln 2, ln 2: the mean is 0, the mean square 2/3 · ln² 2.
    assert errors["SILog"] == pytest.approx(100 * math.log(2) * math.sqrt(2 / 3))
    near = depth_errors(torch.tensor([1.2, 1.5, 1.9]), torch.tensor([1.0, 1.0, 1.0]))
    assert [near[f"delta{power}"] for power in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])


def test_a_common_factor_is_nothing_to_silog_and_median_scaling() -> None:
    target = torch.rand(6, 7) + 1
    assert depth_errors(3 * target.flatten(), target.flatten())["SILog"] == pytest.approx(0, abs=1e-3)
    meters = DepthMeters(Depth(median_scaling=True, max_depth=20))
    meters.update([3 * target], [target], [target])
    assert meters.compute().metrics["RMSE"] == pytest.approx(0, abs=1e-6)
    assert meters.compute().metrics["vs_dense"] == pytest.approx(200)


def test_pixels_that_are_not_valid_do_not_count() -> None:
    target = torch.tensor([[0.0, 2.0, math.nan, 50.0, math.inf]])
    meters = DepthMeters(Depth(max_depth=10))
    meters.update([torch.tensor([[9.0, 2.5, 9.0, 9.0, 9.0]])], [torch.ones(1, 5)], [target])
    assert meters.compute().metrics["RMSE"] == pytest.approx(0.5)


def test_depth_that_is_all_invalid_leaves_the_image_out() -> None:
    meters = DepthMeters(Depth())
    meters.update([torch.ones(2, 2)] * 2, [torch.ones(2, 2)] * 2, [torch.zeros(2, 2), torch.full((2, 2), 2.0)])
    assert meters.compute().metrics["RMSE"] == pytest.approx(1)
    nothing = DepthMeters(Depth())
    nothing.update([torch.ones(2, 2)], [torch.ones(2, 2)], [torch.zeros(2, 2)])
    assert set(nothing.compute().metrics) == {"vs_dense"}
    found = torch.rand(1, 1, 2, 2, requires_grad=True)
    loss = Depth().loss(found, torch.zeros(1, 2, 2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and found.grad is not None and bool((found.grad == 0).all())


def test_eigens_crop_is_that_of_nyu() -> None:
    target = torch.zeros(480, 640)
    target[44:472, 40:602] = 9.0
    target[45:471, 41:601] = 1.0
    meters = DepthMeters(Depth(eigen_crop=True))
    meters.update([torch.ones(480, 640)], [torch.ones(480, 640)], [target])
    assert meters.compute().metrics["RMSE"] == 0
    with pytest.raises(TokensieveError, match="Eigen's crop is of NYU's 640 × 480 pixels and the target has 6 × 4"):
        Depth(eigen_crop=True).counted(torch.ones(4, 6))


def test_the_loss_of_depth_by_hand() -> None:
    found = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    # e = 0, ln 2: mean square ln² 2 / 2, square of the mean ln² 2 / 4.
    wanted = math.sqrt(math.log(2) ** 2 / 2 - 0.85 * math.log(2) ** 2 / 4)
    assert Depth().loss(found, torch.ones(1, 1, 2)).item() == pytest.approx(wanted)
