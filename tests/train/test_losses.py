"""The terms of the loss, the keep rate while training, and images that repeat themselves."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.data.options import DataOptions
from tokensieve.train.data import Places, open_training_images
from tokensieve.train.keep import Easing
from tokensieve.train.losses import DistilFeatures, DistilLogits, Outputs, Step, Task, TokenLabels, terms_of
from tokensieve.train.objective import FineTune, forward_outputs
from tokensieve.train.recipe import Recipe


def step(logits: Tensor, teacher: Tensor, targets: Tensor | None = None) -> Step:
    def outputs(x: Tensor) -> Outputs:
        return Outputs(x, x.unsqueeze(1))

    return Step(torch.zeros(len(logits)), targets, outputs(logits), outputs(teacher), nn.Identity(), 0.0)


def test_the_task_loss_takes_classes_and_shares_of_classes() -> None:
    logits = torch.randn(4, 3)
    classes = torch.tensor([0, 2, 1, 1])
    shares = nn.functional.one_hot(classes, 3).float()
    one, other = (Task()(step(logits, logits, targets)) for targets in (classes, shares))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, -logits.log_softmax(1)[range(4), classes].mean())


def test_distillation_of_logits_is_the_kl_times_the_squared_temperature() -> None:
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (theirs / 2).softmax(1), (ours / 2).softmax(1)
    expected = 4 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(DistilLogits(temperature=2.0)(step(ours, theirs)), expected)
    assert float(DistilLogits()(step(ours, ours))) == pytest.approx(0, abs=1e-6)


def test_distillation_of_features_reads_every_restored_token() -> None:
    torch.manual_seed(0)
    dense = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    reduced = ts.apply(copy.deepcopy(dense), "tome:r=3")
    images = torch.randn(2, 3, 64, 64)
    theirs, ours = forward_outputs(dense, images, True), forward_outputs(reduced, images, True)
    assert theirs.tokens is None and ours.tokens is not None
    assert ours.features is not None and theirs.features is not None
    assert ours.features.shape == theirs.features.shape == (2, 17, 64)
    assert ours.tokens.count < 16
    torch.testing.assert_close(ours.logits, reduced(images))
    term = DistilFeatures()
    assert float(term(Step(images, None, ours, theirs, reduced, 0.0))) > 0
    assert float(term(Step(images, None, theirs, theirs, dense, 0.0))) == 0


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    dense = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    reduced = ts.apply(copy.deepcopy(dense), "tome:r=3")
    terms = terms_of(Recipe(task=1.0, distill_logits=0.5, distill_features=2.0), labelled=True)
    loss, parts = FineTune(reduced, dense, terms)(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), 0.0)
    torch.testing.assert_close(loss.detach(), parts["task"] + 0.5 * parts["logits"] + 2 * parts["features"])
    with pytest.raises(ts.TokensieveError, match="the loss is empty"):
        FineTune(reduced, dense, terms_of(Recipe(task=1.0), labelled=False))


def test_easing_starts_dense_and_ends_at_the_methods_own_rate() -> None:
    dense = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    model = ts.apply(copy.deepcopy(dense), "evit:keep=0.5:sites=[1,2]")
    images = torch.randn(2, 3, 64, 64)
    ended = model(images)
    easing = Easing(model, Recipe(ease_start=1, ease_epochs=2), steps_per_epoch=10)
    assert easing(9) == 0
    assert torch.equal(model(images), dense(images))
    assert 0 < easing(20) < 1
    assert ts.trace(model, images).tokens.count > 4  # type: ignore[union-attr]
    easing.finish()
    assert torch.equal(model(images), ended)
    assert ts.spell(ts.applied(model)) == "evit:keep=0.5:sites=[1,2]"


def test_places_of_two_processes_are_those_of_one() -> None:
    one = list(Places(23, 4, 12, seed=3))
    halves = [list(Places(23, 2, 12, seed=3, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == one
    assert list(Places(23, 4, 12, seed=3, start=7)) == one[7:]
    epochs = [[index for batch in one[start : start + 5] for _, index in batch] for start in (0, 5)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]


def test_places_in_order_are_the_same_every_epoch() -> None:
    found = list(Places(5, 2, 4, seed=3, shuffle=False))
    assert found == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0), (1, 1)], [(1, 2), (1, 3)]]


def test_labels_of_patches_weigh_what_is_there_and_what_is_not_alike() -> None:
    term = TokenLabels(1.0, 4, classes=2)
    features = torch.randn(1, 5, 4)  # a class token and four patches
    labels = torch.tensor([[2, 2, 1, 2]])
    made = Step(torch.zeros(1), None, Outputs(torch.zeros(1, 2), features), None, nn.Identity(), 0.0, labels)
    each = nn.functional.cross_entropy(term.head(features[0, 1:]), labels[0], reduction="none")
    torch.testing.assert_close(term(made), (each[[0, 1, 3]].mean() + each[2]) / 2)
    model = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    targets = torch.randint(0, 3, (2, 17))
    _, parts = FineTune(model, None, [Task(), TokenLabels(1.0, 64, 3)])(torch.randn(2, 3, 64, 64), targets, 0.0)
    assert parts.keys() == {"task", "token_labels"}
    with pytest.raises(ts.TokensieveError, match="set no_aug true, mixup and cutmix 0"):
        Recipe(token_labels=1.0)


def test_an_image_depends_on_seed_epoch_and_index_alone(pictures: Path) -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=3)
    arguments = DataOptions(data=None, split="train", workers=0)
    recipe = Recipe(aa="rand-m9-mstd0.5-inc1", reprob=0.5)

    def images(seed: int) -> object:
        return open_training_images(arguments, (str(pictures),), model, recipe, True, seed)[0]

    first = images(0)
    image, label = first[1, 5]  # type: ignore[index]
    state = torch.get_rng_state()
    torch.rand(7)
    again, same = images(0)[1, 5]  # type: ignore[index]
    assert torch.equal(image, again) and label == same
    assert not torch.equal(image, first[2, 5][0])  # type: ignore[index]
    assert not torch.equal(image, images(1)[1, 5][0])  # type: ignore[index]
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    first[0, 0]  # type: ignore[index]
    assert torch.equal(torch.rand(1), expected)  # reading an image leaves the run's random numbers alone
