"""A move that runs the norm of the MLP on its way gives what the two give one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import CONFIGS, build, images, run
from tokensieve.engine.block import Site
from tokensieve.families._modules import norm_of


def on_its_way(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Ask for the norm on every device; one entry a time, whether there is one."""
    asked: list[bool] = []

    def norm(site: Site, block: nn.Module, tokens: ts.Tokens) -> object:
        found = site.reduction.family.mlp_norm(block)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(Site, "_next_norm", norm)
    return asked


@every_case(["tome", "evit", "bat"])
def test_the_same_answer(family: str, name: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ts.apply(build(family, name), CONFIGS[config]), images(2)
    wanted = run(model, x)
    asked = on_its_way(monkeypatch)
    torch.testing.assert_close(run(model, x), wanted)
    assert asked


def test_norms_that_somebody_listens_to_run_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ts.apply(build("timm-vit", "plain"), CONFIGS["tome"]), images(2)
    asked, heard = on_its_way(monkeypatch), []
    run(model, x)
    assert all(asked)
    asked.clear()
    model.blocks[1].norm2.register_forward_hook(lambda module, args, out: heard.append(out.shape))
    run(model, x)
    assert heard and asked.count(False) == 1


def test_modules_that_do_nothing_are_called_where_somebody_listens() -> None:
    model, x = ts.apply(build("timm-vit", "plain"), CONFIGS["tome"]), images(2)
    wanted, heard = run(model, x), []
    block = model.blocks[1]
    block.drop_path1, block.drop_path2 = nn.Identity(), nn.Identity()
    block.drop_path1.register_forward_hook(lambda module, args, out: heard.append("hook"))

    def forward(x: torch.Tensor) -> torch.Tensor:
        heard.append("forward")
        return x

    block.drop_path2.forward = forward  # as accelerate does it
    assert torch.equal(run(model, x), wanted)
    assert heard == ["hook", "forward"]


def test_only_plain_layer_norms_are_taken_for_numbers() -> None:
    assert norm_of(nn.LayerNorm(8)) is not None
    for other in (None, nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm((2, 4)), nn.RMSNorm(8), nn.Identity()):
        assert norm_of(other) is None
