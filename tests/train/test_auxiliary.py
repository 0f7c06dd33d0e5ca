"""What methods plug into training: losses, MACs with a gradient, learned thresholds; DynamicViT as the proof."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.engine.block import Site
from tokensieve.measure.macs import count
from tokensieve.methods._threshold import Threshold, hard_step, soft_step
from tokensieve.train.auxiliary import macs_loss, recording

SIZE = (64, 80)


def small(**changes: object) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 16, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    torch.manual_seed(3)
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **changes}).double().eval()


def images(number: int = 3) -> Tensor:
    return torch.randn(number, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Logits(nn.Module):
    """As many free numbers as there are patches."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.linspace(-1.5, 2, 20))


@dataclass(frozen=True, kw_only=True)
class SoftMasks(ts.Method):
    """Masks every token a little, by free numbers, before block 1 and in the middle of block 2."""

    name = "masks-of-the-tests"
    middle: bool = False

    @property
    def point(self) -> str:  # type: ignore[override]
        return "middle" if self.middle else "before"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (2,) if self.middle else (1,)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches - 1

    def module(self, layout: ts.Layout) -> nn.Module:
        return Logits()

    def assign(self, view: ts.View) -> ts.KeepMask:
        assert isinstance(view.module, Logits)
        return ts.KeepMask(mask=view.module.free.sigmoid().expand(view.x.shape[0], -1))


def test_the_gradient_of_the_macs_is_that_of_finite_differences() -> None:
    model = ts.apply(small(), SoftMasks(middle=True)).train()
    free = next(module.free for module in model.modules() if isinstance(module, Logits))

    def loss() -> Tensor:
        with recording(model) as record:
            model(images())
        macs, dense = record.macs()
        assert macs.shape == (3,) and bool((macs < dense).all())
        # In float64, which macs_loss leaves only at its end.
        return (macs.mean() / dense - 0.4).square()

    value = loss()
    value.backward()
    assert free.grad is not None
    with torch.no_grad():
        for place in range(0, 20, 3):
            step = 1e-5
            free[place] += step
            above = loss()
            free[place] -= 2 * step
            below = loss()
            free[place] += step
            torch.testing.assert_close(free.grad[place], (above - below) / (2 * step), rtol=1e-5, atol=1e-10)
    assert (free.grad > 0).all(), "more tokens cost more, and there are too many"


@pytest.mark.parametrize("spec", ["topk:keep=0.5", "dynamicvit:noise=false", "evit:keep=0.5:fuse=false", "tome:r=3",
                                  "tosa:score=own", "topk:keep=0.7+tosa:score=own"])  # fmt: skip
def test_hard_masks_count_what_the_reduced_model_costs(spec: str) -> None:
    model, x = ts.apply(small(), spec, masked=True), images()
    report, dense = count(model, x), count(small(), x)
    model.train()
    with recording(model) as record, torch.no_grad():
        model(x)
    macs, whole = record.macs()
    wanted = sum(block.macs for block in report.blocks)
    torch.testing.assert_close(macs.expand(3), torch.full((3,), wanted, dtype=torch.float64), rtol=1e-6, atol=0)
    assert whole == sum(block.macs for block in dense.blocks)
    share = report.total / dense.total
    assert float(macs_loss(record, share, report.rest)) < 1e-10
    assert float(macs_loss(record, share - 0.1, report.rest)) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ts.TokensieveError, match="between 0 and 1"):
        macs_loss(record, 1.5)


def test_losses_travel_with_the_tokens_and_stay_nowhere() -> None:
    model, x = ts.apply(small(), "dynamicvit:keep=0.5"), images()
    model.train()
    with recording(model) as record:
        torch.manual_seed(1)
        model(x)
        first = record.losses()
        torch.manual_seed(2)
        model(x)
        second = record.losses()
        masks = [stage.mask for stage in record.tokens.stages]
    assert list(first) == list(second) == ["ratio"] and first["ratio"] != second["ratio"]
    # Every block but the first has a site before it.
    wanted = sum((mask.mean(1) - 0.5**site).square().mean() for site, mask in enumerate(masks, 1))
    torch.testing.assert_close(second["ratio"], 2 * wanted / 3, check_dtype=False)
    torch.testing.assert_close(record.loss(), second["ratio"], check_dtype=False)
    assert all(set(mask.unique().tolist()) <= {0.0, 1.0} for mask in masks)
    model.eval()
    with recording(model) as record:
        model(x)
    assert record.losses() == {} and float(record.loss()) == 0
    assert all(not m._forward_pre_hooks for m in model.modules())
    with recording(small()) as record, pytest.raises(ts.TokensieveError, match="nothing was recorded"):
        record.losses()


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_dynamicvits_predictors_learn_from_the_classes(noise: bool, checkpointing: bool) -> None:
    model = ts.apply(small(), ts.DynamicViT(noise=noise)).train()
    model.set_grad_checkpointing(checkpointing)
    nn.functional.cross_entropy(model(images()), torch.tensor([1, 2, 3])).backward()
    predictors = [part for site in model.modules() if isinstance(site, Site) for part in site.learned.values()]
    assert len(predictors) == 3
    for predictor in predictors:
        gradients = [p.grad for p in predictor.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


def test_dynamicvit_keeps_the_published_counts() -> None:
    model = ts.apply(timm.create_model("deit_tiny_patch16_224").eval(), ts.DynamicViT(keep=0.7))
    stages = ts.trace(model, torch.randn(1, 3, 224, 224)).stages
    kept = [int(196 * 0.7**stage) for stage in range(4)]
    assert [stage.attended - 1 for stage in stages] == [count for count in kept for _ in range(3)]
    assert kept == [196, 137, 96, 67]


def test_dynamicvits_ratio_loss_draws_the_share_kept_to_the_target() -> None:
    model, x = ts.apply(small(), "dynamicvit:keep=0.3").train(), images(8)
    predictors = [p for site in model.modules() if isinstance(site, Site) for p in site.learned.parameters()]
    optimizer = torch.optim.Adam(predictors, lr=1e-2)
    kept = []
    for _ in range(60):
        with recording(model) as record:
            model(x)
        optimizer.zero_grad()
        record.loss().backward()
        optimizer.step()
        kept.append([float(stage.mask.detach().mean()) for stage in record.tokens.stages])
    assert abs(kept[0][0] - 0.5) < 0.15 and abs(sum(row[0] for row in kept[-5:]) / 5 - 0.3) < 0.1


@pytest.mark.parametrize("temperature", [1e-2, 0.1, 1.0])
def test_a_threshold_steps_and_has_the_slope_of_a_sigmoid(temperature: float) -> None:
    threshold = Threshold(0.3, temperature).double()
    score = torch.tensor([[0.1, 0.29, 0.31, 0.9]], dtype=torch.float64, requires_grad=True)
    mask = threshold(score)
    assert mask.tolist() == [[0, 0, 1, 1]]
    weights = torch.tensor([[1.0, -2, 3, 0.5]], dtype=torch.float64)
    (mask * weights).sum().backward()
    step = 1e-6

    def soft(shift: float) -> Tensor:
        return (soft_step(score.detach(), threshold.value.detach() + shift, temperature) * weights).sum()

    assert threshold.value.grad is not None and score.grad is not None
    slope = (soft(step) - soft(-step)) / (2 * step)
    torch.testing.assert_close(threshold.value.grad, slope[None], rtol=1e-5, atol=1e-8)
    moved = score.grad / weights
    assert (moved >= 0).all() and (moved[:, 1:3] > 0).all(), "a higher score is kept more, whatever the weight"
    near, far = moved[0, 1], moved[0, 3]
    assert near > far, "who is near the threshold moves it most"


def test_a_step_is_exact_in_the_forward_pass() -> None:
    soft = torch.rand(1000).requires_grad_(True)
    hard = hard_step(soft)
    assert set(hard.tolist()) == {0.0, 1.0}
    hard.sum().backward()
    assert torch.equal(soft.grad, torch.ones(1000))
    with pytest.raises(ValueError, match="above 0"):
        Threshold(0.1, 0.0)
