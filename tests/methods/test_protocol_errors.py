"""What a new method or family gets wrong first is told in a sentence that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.families._locate import family_of
from tokensieve.families.timm_vit import TimmViT
from tokensieve.methods import Assignment, Layout, Method, View, keep_only


def tiny() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()


@dataclass(frozen=True, kw_only=True)
class Made(Method):
    """Does at block 1 what the test wants."""

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - 1

    def assign(self, view: View) -> Any:
        return self.decide(view)  # type: ignore[attr-defined]


def said(decide: Any) -> str:
    """The sentence that a model with this decision ends in."""
    method = type("Bad", (Made,), {"decide": staticmethod(decide), "name": "bad"})()
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(tiny(), method)(torch.randn(2, 3, 64, 64))
    return str(error.value)


def first(view: View) -> Tensor:
    return torch.arange(view.count - 1).expand(2, -1)


def test_an_assignment_that_is_none_or_half_of_one() -> None:
    assert "bad answered with None in block 1: assign() gives an Assignment" in said(lambda view: None)
    last = torch.full((2, 1), 15)
    assert "an assignment with moved alone" in said(lambda view: Assignment(keep=first(view), moved=last))
    assert "an assignment with onto alone" in said(lambda view: Assignment(keep=first(view), dropped=last, onto=last))


@pytest.mark.parametrize("size", [torch.ones(2, 15), torch.ones(2, 16, dtype=torch.int64)])
def test_sizes_that_are_none(size: Tensor) -> None:
    def decide(view: View) -> Assignment:
        view.resize(size)
        return keep_only(first(view), view.count)

    assert "expected floating-point numbers for each of (2, 16) (images, patch tokens)" in said(decide)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("heat", torch.zeros(2, 16), "maximum"), "with joins='maximum': expected one of 'lead', 'sum', 'mean', 'max'"),
        (("heat", torch.zeros(2, 16, 3, 1)), "of shape (2, 16, 3, 1): expected one value for each of (2, 16)"),
        (
            ("heat", torch.zeros(2, 15)),
            "of shape (2, 15): expected one value for each of (2, 16) (images, patch tokens)",
        ),
        (("heat", [1.0] * 16), "as list: expected a tensor"),
        ((3, torch.zeros(2, 16)), "carries 3 under the name 3: expected a text"),
        (("heat", torch.zeros(2, 16, dtype=torch.bool), "mean"), "as flags, which have no mean"),
    ],
)
def test_a_value_that_cannot_be_carried(arguments: tuple[Any, ...], words: str) -> None:
    def decide(view: View) -> Assignment:
        view.carry(*arguments)
        return keep_only(first(view), view.count)

    assert words in said(decide)


def test_a_point_that_no_block_has() -> None:
    with pytest.raises(ts.TokensieveError, match="centred: point must be one of 'before', 'middle', 'after', got"):
        type("Centred", (Made,), {"point": "centre"})


def test_a_method_that_load_will_not_find(tmp_path: Path) -> None:
    method = type("Local", (Made,), {"decide": staticmethod(lambda view: keep_only(first(view), view.count))})()
    with pytest.warns(ts.TokensieveWarning, match="the method 'local' is defined in .*, where ts.load does not look"):
        ts.save(ts.apply(tiny(), method), tmp_path / "saved")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"grid": (7, 7)}, r"50 tokens \(1 of the prefix and a grid of 7 × 7\), and it ran on 17"),
        ({"prefix": 0}, r"16 tokens \(0 of the prefix and a grid of 4 × 4\), and it ran on 17"),
        ({"dim": 48}, "48 channels, and it ran on 192"),
        ({"depth": 2}, "2 blocks, and it ran on 3"),
    ],
)
def test_a_layout_that_is_not_the_models(wrong: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = TimmViT.layout

    def layout(self: TimmViT, owner: nn.Module) -> Layout:
        said = true(self, owner)
        return Layout(**{**vars(said), **wrong})

    monkeypatch.setattr(TimmViT, "layout", layout)
    model = tiny()
    with pytest.raises(ts.RefusedError, match=f"family timm-vit says that VisionTransformer has {words}"):
        ts.apply(model, ts.ToMe(r=2, sites=(0,)))
    assert not ts.is_applied(model)


def test_blocks_that_a_family_knows_in_an_owner_that_it_does_not() -> None:
    model = tiny()
    wrapped = nn.Module()
    wrapped.layers = model.blocks
    with pytest.raises(ts.RefusedError, match="it has blocks of family timm-vit, but no module that timm-vit takes"):
        family_of(wrapped)
