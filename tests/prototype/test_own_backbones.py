"""Backbones of our own learn from scratch by the stage that timm's ViTs learn by."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

import tokensieve as ts
import tokensieve.prototype
from tokensieve.engine.probe import probe_input
from tokensieve.measure.macs import count
from tokensieve.measure.solver import solve
from tokensieve.plan.plan import make_plan
from tokensieve.train.loop import Told
from tokensieve.train.options import TrainOptions
from tokensieve.train.prepare import prepare
from tokensieve.train.recipe import Recipe
from tokensieve.train.run import train
from tokensieve.train.stages import build
from tokensieve.train.updates import make_optimizer

Make = Callable[..., TrainOptions]
NAMES = ["psvit_tiny", "lemevit_tiny", "imagepiece_tiny"]
each_name = pytest.mark.parametrize("name", NAMES)
SCRATCH: dict[str, Any] = {"stage": "scratch", "method": None, "recipe": "scratch", "steps": 3}


def psvit() -> nn.Module:
    options = {"img_size": 64, "num_classes": 3, "dims": (32, 48), "depths": (3, 2), "heads": (2, 3)}
    return timm.create_model("psvit_tiny", **options)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_they_learn_from_scratch_and_a_run_that_was_stopped_ends_with_the_same_weights(
    name: str, arguments: Make, pictures: Path
) -> None:
    given = arguments(model=name, val_data=str(pictures), changes={"lr": 1e-3}, **SCRATCH)
    train(given)

    def stop(told: Told) -> None:
        if told.step == 3:  # the checkpoint before is of update 2
            raise KeyboardInterrupt

    broken = dataclasses.replace(given, output=given.output + "-broken", resume="auto")
    with pytest.raises(KeyboardInterrupt):
        train(broken, on_step=stop)
    train(broken)
    whole, again = (Path(one.output) / "model.safetensors" for one in (given, broken))
    assert whole.read_bytes() == again.read_bytes()
    loaded = ts.load(given.output)
    assert not ts.is_applied(loaded) and probe_input(loaded).shape == (1, 3, 64, 64)
    torch.manual_seed(0)
    start = timm.create_model(name, num_classes=3, img_size=64).state_dict()
    assert all(not torch.equal(start[key], value) for key, value in loaded.state_dict().items() if "mlp" in key)
    rows = json.loads((Path(given.output) / "bench.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["dense", "no method, before", "no method, trained"]
    assert [row["gmacs"] for row in rows] == [count(loaded, probe_input(loaded)).total / 1e9] * 3


@each_name
def test_the_plan_has_their_macs(name: str, arguments: Make) -> None:
    summary = prepare(arguments(model=name, **SCRATCH)).summary()
    model = timm.create_model(name, num_classes=3, img_size=64).eval()
    macs = count(model, torch.zeros(1, 3, 64, 64)).total / 1e9
    assert summary["GMACs"] == f"{macs:.3f} of {macs:.3f} dense (100.0 %)"
    assert macs > 0.01


def test_stochastic_depth_rises_over_the_blocks_of_all_stages() -> None:
    model = psvit()
    build("scratch", model, Recipe(task=1.0, drop_path=0.2))
    rates = [part.drop_prob for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (psvit(), {"model.cls_token", "model.pos_embed"}),
        (timm.create_model("test_vit", img_size=64, num_classes=3), {"model.cls_token", "model.pos_embed"}),
        (timm.create_model("lemevit_tiny", num_classes=3), {"model.meta_tokens"}),
    ],
    ids=["psvit", "vit", "lemevit"],
)
def test_what_a_model_names_does_not_decay(model: nn.Module, named: set[str]) -> None:
    recipe = Recipe(task=1.0, weight_decay=0.05)
    objective = build("scratch", model, recipe).objective
    free = {
        id(parameter)
        for group in make_optimizer(objective, recipe, 4).param_groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    wide = {name for name, parameter in objective.named_parameters() if id(parameter) in free and parameter.dim() > 1}
    assert wide == named


def test_what_they_cannot_do_is_refused() -> None:
    with pytest.raises(ts.TokensieveError, match=r"token_labels needs a token for every patch .* PSViT has none"):
        build("scratch", psvit(), Recipe(task=1.0, token_labels=1.0, no_aug=True))
    with pytest.raises(ts.TokensieveError, match=r"patch_drop_rate is for timm's plain ViTs.* not for PSViT"):
        build("scratch", psvit(), Recipe(task=1.0, patch_drop_rate=(0.5,)))


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("selectors", "PSViT cannot be reduced: it pools its tokens"),
        ("finetune", "PSViT cannot be reduced: it pools its tokens"),
        ("recover", "the stage recover needs a method"),
        ("pretrain", "PSViT"),
    ],
)
def test_stages_that_need_a_method_or_a_plain_vit_say_so(stage: str, reason: str, arguments: Make) -> None:
    given = arguments(model="psvit_tiny", stage=stage, method=None, recipe=None)
    with pytest.raises(ts.TokensieveError, match=reason):
        prepare(given)
    assert not Path(given.output).exists()


def test_no_setting_is_looked_for() -> None:
    with pytest.raises(ts.RefusedError, match="PSViT cannot be reduced: it pools its tokens"):
        solve(psvit(), (ts.ToMe(r=2),), 0.7, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ts.RefusedError, match="PSViT cannot be reduced: it pools its tokens"):
        make_plan(psvit(), ts.ToMe(r=2), target_speedup=1.5, batch_size=1)


def test_a_method_is_refused_with_the_reason(arguments: Make) -> None:
    with pytest.raises(ts.RefusedError, match="LeMeViT cannot be reduced: its image tokens lie on a grid"):
        prepare(arguments(model="lemevit_tiny", **(SCRATCH | {"method": "tome:r=2"})))
