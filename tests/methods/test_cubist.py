"""CubistMerge: a grid of tokens stays a grid, whatever merges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokensieve as ts
from tests.helpers.models import build, images, liven, run
from tokensieve.methods.cubist import merge_neighbours
from tokensieve.tokens.algebra import apply
from tokensieve.tokens.decision import check
from tokensieve.tokens.state import Tokens


def line(*degrees: float) -> Tensor:
    """(1, W, 2): tokens that point in these directions."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).unsqueeze(0)


def decided(method: ts.CubistMerge, x: Tensor, grid: tuple[int, int], prefix: int = 0) -> Tokens:
    """The state behind the only site of ``method`` on ``x`` (B, P + rows · columns, C)."""
    layout = ts.Layout(depth=4, dim=x.shape[2], heads=1, prefix=prefix, class_token=False, grid=grid)
    state = Tokens.start(x, prefix, grid=grid)
    keep = method.remaining(state.count, 0, layout)
    view = ts.View(state, method, layout, 1, 0, keep, frozenset(), None, False, None)
    assignment = method.assign(view)
    assert check(assignment, state.count) is None and assignment.keep.shape[1] == keep
    return apply(state, assignment)


# By hand


def test_a_row_of_four() -> None:
    row = line(0, 10, 50, 55)  # the second is nearer to the first, the last to the third, and these are nearest
    keep, moved, onto = merge_neighbours(row, 1)
    assert (keep.tolist(), moved.tolist(), onto.tolist()) == ([[0, 1, 2]], [[3]], [[2]])
    keep, moved, onto = merge_neighbours(row, 2)
    assert (keep.tolist(), moved.tolist(), onto.tolist()) == ([[0, 2]], [[3, 1]], [[1, 0]])
    keep, moved, onto = merge_neighbours(row, 0)
    assert keep.tolist() == [[0, 1, 2, 3]] and moved.shape == onto.shape == (1, 0)


def test_a_token_may_be_joined_from_both_sides() -> None:
    keep, moved, onto = merge_neighbours(line(90, 12, 10, 9, 60), 2)
    assert (keep.tolist(), moved.tolist(), onto.tolist()) == ([[0, 2, 4]], [[3, 1]], [[1, 1]])


def test_ties_go_by_index() -> None:
    keep, moved, onto = merge_neighbours(torch.ones(1, 7, 3), 2)
    assert (keep.tolist(), moved.tolist(), onto.tolist()) == ([[0, 2, 4, 5, 6]], [[1, 3]], [[0, 1]])
    keep, moved, onto = merge_neighbours(line(20, 10, 0, 10, 20), 1)  # all four edges alike
    assert (keep.tolist(), moved.tolist(), onto.tolist()) == ([[0, 2, 3, 4]], [[1]], [[0]])
    assert merge_neighbours(torch.zeros(1, 4, 2), 1)[1].tolist() == [[1]]


def test_two_rows_of_three() -> None:
    x = torch.tensor(
        [
            [4.0, 0.0],
            [4.0, 0.1],  # joins the first
            [0.0, 1.0],
            [1.0, 3.0],
            [0.2, 6.0],  # joins the last
            [-0.1, 7.0],
        ]
    ).unsqueeze(0)
    rows = decided(ts.CubistMerge(rows=0, columns=1), x, (2, 3))
    assert rows.group.tolist() == [[0, 0, 1, 2, 3, 3]] and rows.rep.tolist() == [[0, 2, 3, 5]]
    torch.testing.assert_close(rows.x, torch.tensor([[[4.0, 0.1], [0.0, 1.0], [1.0, 3.0], [0.2, 7.0]]]))
    both = decided(ts.CubistMerge(rows=1, columns=1), x, (2, 3))
    assert both.group.tolist() == [[0, 0, 1, 0, 1, 1]] and both.rep.tolist() == [[0, 2]]
    torch.testing.assert_close(both.x, torch.tensor([[[4.0, 3.0], [0.2, 7.0]]]))
    assert both.sizes.tolist() == [[3.0, 3.0]]
    assert both.restore()[0, [0, 1, 3]].tolist() == [both.x[0, 0].tolist()] * 3
    mean = decided(ts.CubistMerge(rows=1, columns=1, value="mean"), x, (2, 3))
    torch.testing.assert_close(mean.x[0, 0], x[0, [0, 1, 3]].mean(dim=0))


# Whatever the grid


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_every_row_and_every_column_loses_as_many(
    rows: int, columns: int, prefix: int, seed: int, data: st.DataObject
) -> None:
    fewer = data.draw(st.integers(0, rows // 2)), data.draw(st.integers(0, columns // 2))
    height, width = rows - fewer[0], columns - fewer[1]
    x = torch.randn(2, prefix + rows * columns, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    method = ts.CubistMerge(rows=fewer[0], columns=fewer[1])
    after = decided(method, x, (rows, columns), prefix)
    assert after.count == height * width
    assert torch.equal(after.x[:, :prefix], x[:, :prefix])
    assert after.sizes.sum(dim=1).tolist() == [rows * columns] * 2
    for image in range(2):
        group = after.group[image].view(rows, columns)
        row, column = group // width, group % width
        for i in range(rows):  # the tokens that a row became, from left to right
            assert column[i].unique_consecutive().tolist() == list(range(width))
        for place in range(width):  # those tokens, one a row, from above
            heights = [int(row[i][column[i] == place].unique()) for i in range(rows)]
            assert torch.tensor(heights).unique_consecutive().tolist() == list(range(height))
        assert torch.equal(after.group[image][after.rep[image]], torch.arange(height * width))
        for place in range(height * width):
            members = x[image, prefix:][after.group[image] == place]
            largest = members.gather(0, members.abs().argmax(dim=0, keepdim=True))[0]
            assert torch.equal(after.patches[image, place], largest)
        alone = decided(method, x[image : image + 1], (rows, columns), prefix)
        assert torch.equal(alone.x[0], after.x[image]) and torch.equal(alone.group[0], after.group[image])


@given(keep=st.floats(0.01, 1), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_the_share_that_stays(keep: float, rows: int, columns: int) -> None:
    sides = ts.CubistMerge(keep=keep).left((rows, columns), 0)
    for left, side in zip(sides, (rows, columns), strict=True):
        assert left == max(round(round(side * math.sqrt(keep), 6)), side - side // 2)
        assert 1 <= left <= side


def test_shares_as_in_the_card() -> None:
    assert ts.CubistMerge().left((14, 14), 0) == (12, 12)
    assert ts.CubistMerge(keep=0.86).left((14, 14), 0) == (13, 13)
    assert [ts.CubistMerge().blocks(depth) for depth in (1, 2, 4, 12, 24, 40)] == [(0,), (1,), (1,), (1,), (2,), (3,)]


# On models: 4 × 5 patches


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("timm-vit", "plain"),
        ("timm-vit", "dinov2-reg4"),
        ("timm-eva", "dinov3"),
        ("timm-eva", "eva02"),
        ("timm-eva", "rope-mixed"),
    ],
)
def test_one_site_after_another(family: str, name: str) -> None:
    model, x = ts.apply(build(family, name), ts.CubistMerge(rows=(1, 1), columns=(2, 0), sites=(1, 3))), images(3)
    trace = ts.trace(model, x)
    prefix = trace.tokens.prefix
    assert [stage.processed - prefix for stage in trace.stages] == [20, 9, 9, 6]  # 4 × 5, 3 × 3, 2 × 3
    assert trace.tokens.sizes.sum(dim=1).tolist() == [20.0] * 3
    together = run(model, x)
    for number, image in enumerate(x.split(1)):
        torch.testing.assert_close(run(model, image)[0], together[number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"rows": 0, "columns": 0}, {"sites": ()}])
def test_a_config_that_removes_nothing_changes_no_bit(options: dict[str, Any]) -> None:
    dense = run(build("timm-vit", "plain"), images(2))
    assert torch.equal(run(ts.apply(build("timm-vit", "plain"), ts.CubistMerge(**options)), images(2)), dense)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (4, 4), (1, 6), (2, 2)])
def test_a_tower_on_images_of_any_shape(rows: int, columns: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_register_tokens=2,
    )
    torch.manual_seed(0)
    model = ts.apply(liven(transformers.DINOv3ViTModel(config)).eval(), ts.CubistMerge(keep=0.5))
    pixels = torch.randn(2, 3, rows * 16, columns * 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(pixel_values=pixels).last_hidden_state
        alone = model(pixel_values=pixels[1:]).last_hidden_state
    assert whole.shape == (2, 3 + rows * columns, 48) and bool(whole.isfinite().all())
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-4, atol=1e-5)
    height, width = ts.CubistMerge(keep=0.5).left((rows, columns), 0)
    assert [stage.processed for stage in ts.trace(model, pixels).stages] == [3 + rows * columns] + 3 * [
        3 + height * width
    ]


@pytest.mark.parametrize("value", ["larger", "mean"])
def test_a_gradient_reaches_every_patch(value: str) -> None:
    x = images(2).requires_grad_()
    ts.apply(build("timm-vit", "plain"), ts.CubistMerge(keep=0.5, sites=(0,), value=value))(x).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    patches = x.grad.unfold(2, 16, 16).unfold(3, 16, 16).abs().amax(dim=(1, 4, 5))
    assert patches.shape == (2, 4, 5) and bool((patches > 0).all())  # each is the larger one in some channel


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": -1}, "cubist: rows must be a whole number, 0 or more, or a list of them, got -1"),
        ({"columns": (1, -2)}, "cubist: columns must be a whole number, 0 or more, or a list of them"),
        ({"columns": 1.5}, "cubist: columns must be a whole number or a list of whole numbers or none, got 1.5"),
        ({"value": "max"}, "cubist: value must be one of 'larger', 'mean', got 'max'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ts.TokensieveError) as error:
        ts.CubistMerge(**options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ts.CubistMerge(rows=3), "cubist: rows must be at most half of the 4 that site 0 finds, got 3"),
        (
            ts.CubistMerge(columns=2, sites=(1, 2)),
            "cubist: columns must be at most half of the 3 that site 1 finds, got 2",
        ),
        (ts.CubistMerge(rows=(1, 1), columns=0), "rows lists 2 values, and the method acts at 1 sites"),
        ([ts.ToMe(r=2), ts.CubistMerge(sites=(2,))], "cubist acts on the grid of all 20 patches, and tome leaves 16"),
        (
            [ts.CubistMerge(sites=(1, 3)), ts.ToMe(r=1, sites=(2,))],
            "cubist acts on a grid of 3 × 4 tokens and finds 11 of them, since another method has removed some",
        ),
    ],
)
def test_what_does_not_fit_a_model(method: Any, words: str) -> None:
    model = build("timm-vit", "plain")
    with pytest.raises(ts.TokensieveError) as error:
        ts.apply(model, method)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not ts.is_applied(model)


def test_its_counts_are_not_rounded() -> None:
    with pytest.raises(ts.TokensieveError, match="cubist leaves a grid of tokens, whose number cannot be rounded"):
        ts.apply(build("timm-vit", "plain"), ts.CubistMerge(), multiple=8)


def test_other_methods_act_behind_it() -> None:
    model = ts.apply(build("timm-vit", "plain"), [ts.CubistMerge(sites=(1, 2)), ts.ToMe(r=2, sites=(2, 3))])
    assert [stage.processed - 1 for stage in ts.trace(model, images(2)).stages] == [20, 12, 7, 5]


def test_tokens_on_no_grid() -> None:
    model = ts.apply(build("timm-vit", "plain"), ts.CubistMerge())
    with (
        torch.no_grad(),
        pytest.raises(ts.TokensieveError, match=r"cubist acts on the grid of patches, and 30 patches"),
    ):
        model.blocks(torch.randn(1, 31, 48))
