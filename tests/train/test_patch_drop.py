"""Leaving patches out while a dense model learns."""

import copy

import pytest
import timm
import torch
from torch import nn

import tokensieve as ts
from tokensieve.train.losses import Task, TokenLabels
from tokensieve.train.objective import FineTune
from tokensieve.train.patch_drop import choose_patches, rate_at, reading_only
from tokensieve.train.recipe import Recipe
from tokensieve.train.stages import build


def vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=64, num_classes=3).eval()


def test_rates_are_of_equal_parts_of_the_training() -> None:
    assert [rate_at((0.7, 0.4, 0.0), step / 6) for step in range(6)] == [0.7, 0.7, 0.4, 0.4, 0.0, 0.0]
    assert rate_at((), 0.5) == 0


def test_patches_with_a_class_are_left_out_last() -> None:
    wanted = torch.zeros(2, 16, dtype=torch.bool)
    wanted[0, [3, 7]] = True
    wanted[1, 4:14] = True
    drawn = [choose_patches(2, 16, 0.5, wanted) for _ in range(20)]
    assert all(kept.shape == (2, 8) for kept in drawn)
    assert all({3, 7} <= set(kept[0].tolist()) <= set(range(16)) for kept in drawn)
    assert all(set(kept[1].tolist()) <= set(range(4, 14)) for kept in drawn)
    assert all(len(set(kept[0].tolist())) == 8 for kept in drawn)
    others = set().union(*(set(kept[0].tolist()) for kept in drawn))
    assert len(others) > 8  # others are drawn anew
    assert choose_patches(1, 16, 0.999).shape == (1, 1)


def test_a_model_runs_on_the_patches_that_are_kept_and_afterwards_on_all() -> None:
    model, images = vit(), torch.randn(2, 3, 64, 64)
    dense = model(images)
    kept = torch.tensor([[0, 5, 9], [15, 2, 3]])
    with reading_only(model, kept):
        features = model.forward_features(images)  # type: ignore[operator]
    tokens = model._pos_embed(model.patch_embed(images))  # type: ignore[operator]
    chosen = torch.stack([torch.cat([x[:1], x[1:][own]]) for x, own in zip(tokens, kept, strict=True)])
    torch.testing.assert_close(features, model.norm(model.blocks(chosen)))  # type: ignore[operator]
    assert torch.equal(model(images), dense)


def test_labels_of_patches_are_those_of_the_patches_that_are_kept() -> None:
    model, images = vit(), torch.randn(2, 3, 64, 64)
    targets = torch.full((2, 17), 3)
    targets[:, 0], targets[:, 6] = 1, 2  # one patch of sixteen has a class
    term = TokenLabels(1.0, 64, 3)
    objective = FineTune(copy.deepcopy(model), None, [Task(), term], patch_drop_rate=[0.9, 0.0])
    torch.manual_seed(0)
    _, parts = objective(images, targets, 0.0)
    torch.manual_seed(0)
    kept = choose_patches(2, 16, 0.9, targets[:, 1:] < 3)
    with reading_only(model, kept):
        features = model.forward_features(images)  # type: ignore[operator]
    each = nn.functional.cross_entropy(
        term.head(features[:, 1:]).flatten(0, 1), targets[:, 1:].gather(1, kept).flatten(), reduction="none"
    ).view(2, 2)
    with_class = kept == 5
    assert with_class.sum(dim=1).tolist() == [1, 1]
    torch.testing.assert_close(parts["token_labels"], (each[with_class].mean() + each[~with_class].mean()).detach() / 2)
    full = FineTune(model, None, [Task(), term])(images, targets, 0.5)[1]
    torch.testing.assert_close(objective(images, targets, 0.5)[1], full)  # at rate 0 all patches are read


def test_what_cannot_leave_patches_out_is_refused() -> None:
    recipe = Recipe(task=1.0, patch_drop_rate=(0.5,))
    for stage, model in (("finetune", ts.apply(vit(), "tome:r=2")), ("scratch", ts.apply(vit(), "tome:r=2"))):
        with pytest.raises(ts.TokensieveError, match="patch_drop_rate is for --stage scratch without a --method"):
            build(stage, model, recipe)  # type: ignore[arg-type]
    rotary = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, num_classes=3)
    with pytest.raises(ts.TokensieveError, match="patch_drop_rate is for timm's plain ViTs"):
        build("scratch", rotary, recipe)
    with pytest.raises(ts.TokensieveError, match=r"patch_drop_rate must be a list of shares in \[0, 1\), got \(1.0,\)"):
        Recipe(patch_drop_rate=(1.0,))
    with pytest.raises(ts.TokensieveError, match=r"patch_drop_rate must be a list of numbers, got 0\.5"):
        Recipe(patch_drop_rate=0.5)  # type: ignore[arg-type]
