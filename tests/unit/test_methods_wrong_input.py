"""Wrong input to methods and to ``ts.apply``: one clear sentence each, and a model that is left as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

import tokensieve as ts

NAMES = sorted(ts.methods())


def tiny(**options: Any) -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", img_size=64, depth=4, num_classes=3, **options).eval()


def said_by(error: pytest.ExceptionInfo[ts.TokensieveError]) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan, math.inf, (), (0.5, 0.0), [0.5, 1.5]])
@pytest.mark.parametrize("name", [n for n in NAMES if ts.methods()[n].knob == "keep"])
def test_keep_outside_zero_to_one(name: str, keep: Any) -> None:
    with pytest.raises(ts.TokensieveError) as error:
        ts.methods()[name](keep=keep)
    assert f"{name}: keep must be a share in (0, 1], got" in said_by(error)


@pytest.mark.parametrize("r", [-1, 2.5, True, (), (1, -1), [1, 2.0]])
@pytest.mark.parametrize("name", [n for n in NAMES if ts.methods()[n].knob == "r"])
def test_r_is_a_whole_number(name: str, r: Any) -> None:
    with pytest.raises(ts.TokensieveError, match=f"{name}: r must be a whole number"):
        ts.methods()[name](r=r)


def test_r_too_large_for_the_model() -> None:
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(tiny(), ts.ToMe(r=9))
    assert "at most half of the 16 patch tokens, 8, got 9" in said_by(error)


def test_a_list_longer_than_the_depth() -> None:
    with pytest.raises(ts.TokensieveError, match="lists 5 blocks but the method acts in 4"):
        ts.apply(tiny(), ts.ToMe(r=(1, 1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (lambda: ts.TopK(sites=(2, 1)), "ascending"),
        (lambda: ts.BAT(sites=(1, 4)), "depth 4"),
        (lambda: ts.ToSA(sites=(1, 2)), "neighbours"),
        (lambda: ts.ToSA(sites=(0,)), "from 1 to 3"),
        (lambda: [ts.BAT(), ts.BAT(keep=0.5)], "two bat methods want the same tokens"),
        (lambda: [ts.ToSA(sites=(2,), score="own"), ts.ToSA(sites=(2,), score="class")], "want the same tokens"),
        (lambda: [], "no method given"),
        (lambda: "bta", "did you mean 'bat'"),
        (lambda: [ts.BAT(), "tome"], "expected a method such as"),
        (lambda: ts.BAT, "expected a method such as"),
        (lambda: 0.5, "expected a method such as"),
        (lambda: None, "expected a method such as"),
    ],
)
def test_apply_refuses_and_changes_nothing(methods: Any, words: str) -> None:
    model = tiny()
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(model, methods())
    assert words in said_by(error)
    assert list(model.state_dict()) == keys and [type(m) for m in model.modules()] == kinds
    assert not ts.is_applied(model) and ts.applied(model) == ()


def test_applying_twice_says_what_is_applied() -> None:
    model = ts.apply(tiny(), ts.ToMe(r=2))
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(model, ts.BAT())
    assert "tome:r=2" in said_by(error) and "ts.remove(model)" in said_by(error)
    assert ts.applied(model) == (ts.ToMe(r=2),)


def test_an_unknown_fill() -> None:
    with pytest.raises(ts.TokensieveError, match="fill must be 'auto', 'last' or 'mean', got 'zero'"):
        ts.apply(tiny(), ts.ToMe(r=2), fill="zero")


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: timm.create_model("resnet18")])
def test_a_model_of_no_family(make: Any) -> None:
    with pytest.raises(ts.RefusedError) as error:
        ts.apply(make(), ts.ToMe(r=2))
    assert "no family matches" in said_by(error) and "timm-vit" in said_by(error)


def test_a_block_that_is_not_what_it_says() -> None:
    model = tiny()

    class Odd(type(model.blocks[1])):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return super().forward(x, **kwargs) + 1

    model.blocks[1].__class__ = Odd
    with pytest.raises(ts.RefusedError, match=r"block 1 .Odd. differs from its two halves"):
        ts.apply(model, ts.ToMe(r=2))
    assert not ts.is_applied(model)


def test_a_wrapped_model() -> None:
    with pytest.raises(ts.RefusedError, match="wrapped in DataParallel"):
        ts.apply(nn.DataParallel(tiny()), ts.ToMe(r=2))


def test_attention_that_is_not_fused() -> None:
    model = tiny()
    for block in model.blocks:
        block.attn.fused_attn = False
    with pytest.raises(ts.RefusedError, match="fused attention on"):
        ts.apply(model, ts.ToMe(r=2))


@pytest.mark.parametrize("options", [{"attn_mask": torch.zeros(17, 17)}, {"is_causal": True}])
def test_a_masked_forward(options: dict[str, Any]) -> None:
    model = ts.apply(tiny(), ts.ToMe(r=2))
    with pytest.raises(ts.RefusedError, match="takes neither attn_mask nor is_causal"):
        model.blocks[0](torch.randn(1, 17, 192), **options)


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_frozen(name: str) -> None:
    config = ts.methods()[name]()
    with pytest.raises(AttributeError):
        config.sites = (1,)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="nonsense"):
        type(config)(nonsense=1)
