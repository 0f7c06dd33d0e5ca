"""What methods add to the loss reaches the training of ``tokensieve train``."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.train.losses import Added
from tokensieve.train.recipe import Recipe
from tokensieve.train.stages import Stage, build

METHODS = ["cropr:r=2:classes=3", "as-vit:start=0.004", "a-vit:scale=2:shift=0", "dynamicvit"]
CLASSES = torch.tensor([0, 2, 1, 1])


def model(spec: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 3}
    return ts.apply(timm.create_model("vit_tiny_patch16_224", **options), spec).train()


def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("stage", ["finetune", "recover"])
def test_a_step_of_training_adds_them(spec: str, stage: Stage) -> None:
    recipe = Recipe(task=1.0, smoothing=0.1) if stage == "finetune" else Recipe(distill_logits=1.0)
    job = build(stage, model(spec), recipe)
    assert job.terms["methods"] == 1.0
    torch.manual_seed(2)
    loss, parts = job.objective(images(), CLASSES if job.labelled else None, 0.0)
    assert set(parts) == {"methods", "task" if job.labelled else "logits"}
    torch.testing.assert_close(loss.detach(), sum(parts.values()))
    assert parts["methods"] > 0
    loss.backward()
    gradients = {name: p.grad for name, p in job.objective.named_parameters()}
    learned = [gradient for name, gradient in gradients.items() if ".learned." in name]
    assert bool(learned) == (not spec.startswith("a-vit"))
    for gradient in learned:
        assert gradient is not None and gradient.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


@pytest.mark.parametrize("mixed", [True, False])
def test_auxiliary_heads_take_classes_and_shares_of_classes(mixed: bool) -> None:
    targets = nn.functional.one_hot(CLASSES, 3).float() if mixed else CLASSES
    job = build("finetune", model("cropr:r=2:classes=3"), Recipe(task=1.0))
    _, parts = job.objective(images(), targets, 0.0)
    _, others = job.objective(images(), CLASSES, 0.0)
    torch.testing.assert_close(parts["methods"], others["methods"])
    wrong = build("finetune", model("cropr:r=2:classes=5"), Recipe(task=1.0)).objective
    if mixed:
        with pytest.raises(ts.TokensieveError, match="tell 5 classes apart"):
            wrong(images(), targets, 0.0)


def test_who_adds_nothing_has_no_such_term() -> None:
    terms = build("finetune", model("tome:r=2"), Recipe(task=1.0)).terms
    assert terms == {"task": 1.0}
    assert Added.name not in terms
