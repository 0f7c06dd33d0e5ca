"""Every recipe holds the numbers of the text it names; a wrong one is one sentence."""

from pathlib import Path

import pytest

import tokensieve as ts
from tokensieve.train.keep import strength, weakened
from tokensieve.train.recipe import Recipe, load_recipe, recipe_names


def test_the_package_has_these_recipes() -> None:
    assert recipe_names() == [
        "bat",
        "bat-scratch",
        "densedino",
        "evit",
        "head",
        "recover",
        "scratch",
        "selectors",
        "tosa",
    ]


def test_bat_is_the_authors_logs() -> None:
    """keep 0.2 to 0.6: 30 epochs, AdamW, cosine 4e-5 to 2e-6 at batch 1024, no warm-up, mixup, no drop-path."""
    bat = load_recipe("bat")
    assert (bat.epochs, bat.opt, bat.sched, bat.warmup_epochs, bat.drop_path) == (30, "adamw", "cosine", 0, 0)
    assert bat.rates(1024)[:2] == pytest.approx((4e-5, 2e-6))
    assert bat.mixup > 0 and bat.task == 1 and not bat.eased and not bat.distill_logits
    assert ts.parse(bat.method) == (ts.BATPaper(keep=0.5),)


def test_bat_from_scratch_is_the_authors_logs() -> None:
    """keep 0.7: 300 epochs, batch 2048, peak 2e-3, 5 warm-up epochs, the keep rate eased over epochs 10 to 110."""
    bat = load_recipe("bat-scratch")
    assert (bat.epochs, bat.warmup_epochs, bat.ease_start, bat.ease_epochs) == (300, 5, 10, 100)
    assert bat.rates(2048)[0] == pytest.approx(2e-3)
    assert ts.parse(bat.method) == (ts.BATPaper(keep=0.7),)
    (method,) = ts.parse(bat.method)
    keeps = [weakened(method, strength(epoch, 10, 100)).keep for epoch in (0, 10, 60, 110, 299)]  # type: ignore[attr-defined]
    assert keeps == pytest.approx([1, 1, 0.85, 0.7, 0.7])


def test_evit_is_the_authors_script() -> None:
    """finetune.sh: lr 2e-5 (· 1024 / 512), min_lr 2e-6 (as it is), weight decay 1e-6, 8 · 128 images, 30 epochs."""
    evit = load_recipe("evit")
    assert (evit.epochs, evit.batch_size, evit.weight_decay, evit.warmup_epochs) == (30, 128, 1e-6, 0)
    assert evit.rates(8 * 128)[:2] == pytest.approx((4e-5, 2e-6))
    assert evit.rates(512)[0] == pytest.approx(2e-5)
    # main.py's defaults for what the script leaves out.
    assert (evit.mixup, evit.cutmix, evit.smoothing, evit.reprob) == (0.8, 1.0, 0.1, 0.25)
    assert (evit.aa, evit.opt, evit.opt_eps, evit.ease_start, evit.ease_epochs) == (
        "rand-m9-mstd0.5-inc1", "adamw", 1e-8, 10, 0,
    )  # fmt: skip
    assert ts.parse(evit.method) == (ts.EViT(keep=0.7, fuse=True),)


def test_tosa_says_that_its_numbers_are_ours() -> None:
    for name in ("tosa", "selectors"):
        assert "not public" in load_recipe(name).source
    tosa = load_recipe("tosa")
    assert tosa.task == 1 and tosa.distill_logits == 1  # task loss and, by default, distillation


def test_what_needs_no_labels_has_no_task_loss() -> None:
    assert load_recipe("recover").task == load_recipe("selectors").task == 0


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_where_it_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.source
    if recipe.method:
        ts.parse(recipe.method)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: 0", "epochs must be 1 or more, got 0"),
        ("epoch: 3", "has no field 'epoch'"),
        ("lr: fast", "lr must be"),
        ("- 1", "must list fields"),
        ("a: [", "is not YAML"),
        ("mixup: -1", "mixup must be 0 or more"),
        ("scale: [0.5]", "scale must be two shares"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ts.TokensieveError, match=sentence):
        load_recipe(str(file))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ts.TokensieveError, match=r"unknown recipe 'bad'.*known are bat, "):
        load_recipe("bad")


def test_a_rate_that_is_given_is_not_scaled() -> None:
    assert Recipe(lr=0.1, min_lr=0.01).rates(7) == (0.1, 0.01, 1e-6)


def test_easing_of_r_and_of_lists() -> None:
    assert weakened(ts.ToMe(r=8), 0.5) == ts.ToMe(r=4)
    assert weakened(ts.EViT(keep=(0.8, 0.6)), 0.5) == ts.EViT(keep=(0.9, 0.8))
    assert weakened(ts.ToMe(r=8), 0.0) == ts.ToMe(r=0)
