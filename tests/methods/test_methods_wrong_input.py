"""Wrong input to methods and to ``ts.apply``: one clear sentence each, and a model that is left as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import tokensieve as ts
from tokensieve.train.selectors import selectors_of

NAMES = sorted(ts.list_methods())
SINGLE = {"ailurus", "diffrate", "expedite", "ipcv"}  # one share for all
LISTS = [
    name for name in NAMES if ts.list_methods()[name].knob == "keep" and name not in SINGLE
]  # a share or one per site


def tiny(**options: Any) -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", img_size=64, depth=4, num_classes=3, **options).eval()


def said_by(error: pytest.ExceptionInfo[ts.TokensieveError]) -> str:
    said = str(error.value)
    assert said and "\n" not in said
    return said


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan, math.inf, (), (0.5, 0.0), [0.5, 1.5]])
@pytest.mark.parametrize("name", LISTS)
def test_keep_outside_zero_to_one(name: str, keep: Any) -> None:
    with pytest.raises(ts.TokensieveError) as error:
        ts.list_methods()[name](keep=keep)
    assert f"{name}: keep must be a share in (0, 1], got" in said_by(error)


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", sorted(SINGLE))
def test_one_keep_for_all_sites(name: str, keep: float) -> None:
    with pytest.raises(ts.TokensieveError, match=rf"{name}: keep must be a share in \(0, 1\], got"):
        ts.list_methods()[name](keep=keep)


@pytest.mark.parametrize("lists", [{"pruned": (0.5,)}, {"merged": (0.5,)}, {"pruned": (0.5, 0.4), "merged": (0.5,)}])
def test_a_schedule_of_diffrate_is_two_lists(lists: dict[str, Any]) -> None:
    with pytest.raises(ts.TokensieveError, match="diffrate: merged must be given with pruned and as long as it"):
        ts.DiffRate(**lists)


@pytest.mark.parametrize("r", [-1, 2.5, True, (), (1, -1), [1, 2.0]])
@pytest.mark.parametrize("name", [n for n in NAMES if ts.list_methods()[n].knob == "r"])
def test_r_is_a_whole_number(name: str, r: Any) -> None:
    with pytest.raises(ts.TokensieveError, match=f"{name}: r must be a whole number"):
        ts.list_methods()[name](r=r)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ts.BAT(keep="0.7"), "bat: keep must be a number or a list of numbers, got '0.7'"),
        (lambda: ts.BAT(keep=[0.5, "x"]), "bat: keep must be a number or a list of numbers, got [0.5, 'x']"),
        (lambda: ts.BAT(keep=None), "bat: keep must be a number or a list of numbers, got None"),
        (lambda: ts.BAT(keep=True), "bat: keep must be a number or a list of numbers, got True"),
        (lambda: ts.BAT(sites=3), "bat: sites must be a list of whole numbers or none, got 3"),
        (lambda: ts.BAT(sites="3"), "bat: sites must be a list of whole numbers or none, got '3'"),
        (lambda: ts.BAT(proportional=1), "bat: proportional must be true or false, got 1"),
        (lambda: ts.ToMe(r="8"), "tome: r must be a whole number or a list of whole numbers, got '8'"),
        (lambda: ts.ToMe(inflect="x"), "tome: inflect must be a number, got 'x'"),
        (lambda: ts.ToMe(metric="key"), "tome: metric must be one of 'keys', 'x', got 'key'"),
        (lambda: ts.ToSA(block=1.5), "tosa: block must be a whole number, got 1.5"),
        (lambda: ts.ToSA(seed=object), "tosa: seed must be a whole number, got <class 'object'>"),
        (lambda: ts.EViT(fuse="no"), "evit: fuse must be true or false, got 'no'"),
    ],
)
def test_options_of_another_type_are_named(make: Any, words: str) -> None:
    with pytest.raises(ts.TokensieveError) as error:
        make()
    assert said_by(error) == words


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_every_method_is_checked(name: str) -> None:
    for option in ts.list_methods()[name].option_types():
        with pytest.raises(ts.TokensieveError, match=f"{name}: {option} must be"):
            ts.list_methods()[name](**{option: object()})


def test_numbers_and_sequences_of_any_kind_are_taken() -> None:
    config = ts.BAT(keep=np.float32(0.5), rounds=np.int64(3), sites=range(3, 9, 2))
    assert config == ts.BAT(keep=0.5, rounds=3, sites=(3, 5, 7))
    assert type(config.keep) is float and type(config.rounds) is int
    assert str(ts.BAT(keep=1)) == "bat:keep=1.0"


def test_r_too_large_for_the_model() -> None:
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(tiny(), ts.ToMe(r=9))
    assert "at most half of the 16 patch tokens, 8, got 9" in said_by(error)


def test_a_list_longer_than_the_depth() -> None:
    with pytest.raises(ts.TokensieveError, match="tome: r lists 5 values, and the method acts at 4 sites"):
        ts.apply(tiny(), ts.ToMe(r=(1, 1, 1, 1, 1)))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_with_more_shares_than_there_are_sites(name: str) -> None:
    config = ts.list_methods()[name](keep=(0.9,) * 5)
    with pytest.raises(ts.TokensieveError, match=f"{name}: keep lists 5 values, and the method acts at [1234] sites"):
        ts.apply(tiny(), config)


def test_an_empty_list_of_values_for_sites() -> None:
    with pytest.raises(ts.TokensieveError, match="bat: surplus lists 0 values"):
        ts.apply(tiny(), ts.BAT(surplus=()))


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (lambda: ts.TopK(sites=(2, 1)), "ascending"),
        (lambda: ts.BAT(sites=(1, 4)), "depth 4"),
        (lambda: ts.ToSA(sites=(1, 2)), "neighbours"),
        (lambda: ts.ToSA(sites=(0,)), "from 1 to 3"),
        (lambda: [ts.BAT(), ts.BAT(keep=0.5)], "two bat methods want the same tokens"),
        (lambda: [ts.ToSA(sites=(2,), score="own"), ts.ToSA(sites=(2,), score="class")], "want the same tokens"),
        (lambda: [ts.ToSA(sites=(1,), score="own"), ts.ToSA(sites=(2,), score="own")], "not neighbours"),
        (lambda: [ts.ToSA(sites=(2,), score="own"), ts.ToSA(sites=(1,), score="own")], "not neighbours"),
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
    assert "no family matches" in said_by(error) and "tokensieve families lists" in said_by(error)


def test_a_block_that_is_not_what_it_says() -> None:
    model = tiny()

    class Odd(type(model.blocks[1])):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return super().forward(x, **kwargs) + 1

    model.blocks[1].__class__ = Odd
    with pytest.raises(ts.RefusedError, match=r"block 1 .Odd. differs from its two halves"):
        ts.apply(model, ts.ToMe(r=2))
    assert not ts.is_applied(model)


@pytest.mark.parametrize(
    "probe", [torch.zeros(1, 1, 64, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 50, 50), "image"]
)
def test_a_probe_that_the_model_does_not_take(probe: Any) -> None:
    model = tiny()
    with pytest.raises(ts.TokensieveError, match=r"does not run on the probe .*give images \(1, C, H, W\)"):
        ts.apply(model, ts.ToMe(r=2), probe=probe)
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
    with pytest.raises(ts.RefusedError, match="takes no attn_mask, attention_mask or is_causal"):
        model.blocks[0](torch.randn(1, 17, 192), **options)


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_frozen(name: str) -> None:
    config = ts.list_methods()[name]()
    with pytest.raises(AttributeError):
        config.sites = (1,)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="nonsense"):
        type(config)(nonsense=1)


def test_the_row_of_a_class_token_that_is_not_there() -> None:
    model = tiny(class_token=False, global_pool="avg")
    with pytest.raises(ts.TokensieveError, match="queries=class needs a class token and this model has none"):
        ts.apply(model, ts.ToSA(queries="class"))
    assert not any(selector.class_row for selector in selectors_of(ts.apply(model, ts.ToSA())).values())
