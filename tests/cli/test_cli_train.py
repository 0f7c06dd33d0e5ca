"""``tokensieve train``: every stage end to end on a tiny model, the dry run, and what it refuses."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import tokensieve as ts
from tests.helpers import calling
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.measure.fidelity import compare
from tokensieve.train.selectors import selectors_of

pytest.importorskip("accelerate", reason="the train extra is not installed")

MODEL = ("test_vit", "--img-size", 64, "--num-classes", 3)
QUICK = ("--batch-size", 4, "-j", 0, "--rounds", 0, "--device", "cpu")

call, fails = partial(calling.call, "train"), partial(calling.fails, "train")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(24):
        place = folder / f"class{number % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


def test_selectors_then_fine_tuning_then_loading(pictures: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "selectors", tmp_path / "tuned"
    fit = call(*MODEL, "--stage", "selectors", "-m", "tosa:keep=0.5", "--data", pictures, *QUICK, "-o", first)
    assert fit.exit_code == 0, fit.output
    fitted = ts.load(first)
    assert all(bool(selector.fitted) for selector in selectors_of(fitted).values())
    assert {path.name for path in first.iterdir()} >= {
        "model.safetensors", "tokensieve.json", "log.csv", "log.jsonl", "curves.png", "bench.json", "report.md",
        "checkpoints", "train.json",
    }  # fmt: skip
    tune = call(first, "--stage", "finetune", "--data", pictures, *QUICK, "--steps", 2, "-o", second, "--lr", "1e-3")
    assert tune.exit_code == 0, tune.output
    tuned = ts.load(second)
    assert ts.applied(tuned) == ts.applied(fitted)
    before, after = fitted.state_dict(), tuned.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and not any("tokensieve" in name for name in changed)  # the selectors stay as they were fitted
    again = call(first, "--stage", "selectors", "--second-pass", "--data", pictures, *QUICK, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    rows = json.loads((second / "bench.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["dense", "tosa:keep=0.5, before", "tosa:keep=0.5, trained"]
    log = [json.loads(line) for line in (second / "log.jsonl").open()]
    assert [record["step"] for record in log] == [1, 2]
    assert {"loss", "task", "logits", "lr"} <= log[0].keys()


def test_recover_needs_no_labels_and_takes_several_folders(pictures: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, file in enumerate(sorted(pictures.rglob("*.png"))[:8]):
        (plain / f"{number}.png").write_bytes(file.read_bytes())
    result = call(
        *MODEL, "--stage", "recover", "-m", "tome:r=2", "--data", plain, "--data", pictures, *QUICK, "--steps", 3,
        "-o", tmp_path / "out", "--grad-accum-steps", 2, "--amp",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert {"logits", "features"} <= log[0].keys() and "task" not in log[0]


def test_from_scratch_with_mixing_easing_and_an_average(pictures: Path, tmp_path: Path) -> None:
    result = call(
        *MODEL, "--stage", "scratch", "-m", "evit:keep=0.5", "--data", pictures, *QUICK, "--epochs", 2, "--model-ema",
        "--ease-epochs", 1, "--val-data", pictures, "--metric", "top1", "-o", tmp_path / "out", "--log-with",
        "tensorboard",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert log[0]["strength"] == 0 and log[-1]["strength"] == 1
    assert ts.spell(ts.applied(ts.load(tmp_path / "out"))) == "evit:keep=0.5"
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


def test_eval_compares_with_the_dense_model_that_the_folder_was_trained_from(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, weights = timm.create_model("test_vit", img_size=64, num_classes=3), tmp_path / "dense.safetensors"
    save_file(dense.state_dict(), weights)
    # Two stages: the second one's MODEL is the first one's folder.
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ("--stage", "recover", "--data", pictures, *QUICK, "--steps", 2, "--lr", "1e-2")
    assert call(*MODEL, "--checkpoint", weights, "-m", "tome:r=2", *settings, "-o", first).exit_code == 0
    assert call(first, *settings, "-o", second).exit_code == 0

    def evaluated(folder: Path, name: str) -> tuple[str, dict[str, float]]:
        file = tmp_path / name
        result = calling.call("eval", folder, "--data", pictures, "-j", 0, "--results-file", file)
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split()), {
            row["variant"]: row["kl"] for row in json.loads(file.read_text())["rows"]
        }

    said, rows = evaluated(first, "first.json")
    assert f"dense is what {first} was trained from: test_vit with {weights}" in said
    assert rows.keys() == {"dense", "tome:r=2, trained"}
    images = open_images(DataOptions(data=str(pictures), workers=0), dense)
    kl = compare(ts.load(first), dense.eval(), images).kl
    assert rows["tome:r=2, trained"] == pytest.approx(kl, rel=1e-3)
    said, rows = evaluated(second, "second.json")
    assert f"dense is what {second} was trained from: {first}" in said
    assert rows["tome:r=2, trained"] != pytest.approx(kl, rel=1e-3)
    weights.unlink()
    said, rows = evaluated(first, "gone.json")
    assert (
        f"dense is {first} itself without its methods: test_vit with {weights}, which it was trained from, is" in said
    )
    assert rows.keys() == {"dense", "tome:r=2"}


def test_from_scratch_with_labels_of_patches_in_order(tmp_path: Path) -> None:
    """With ToMe while it learns, from pictures that get harder, by two of timm's optimizers in one."""
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(
        "{task: 1, token_labels: 1, no_aug: true, shuffle: false, opt: muon, lr: 8.0e-3, "
        "opt_kwargs: {fallback_list: ['*head*', '*_embed*'], fallback_lr_scale: 0.25}}"
    )
    common = ("tokensieve_digits_vit", "--stage", "scratch", "--recipe", recipe, "--dataset", "digits", *QUICK)
    common += ("-m", "tome:r=[98,49,0,0,0,0,0,0,0,0,0,0]", "--val-limit", 4)
    result = call(*common, "--split", "lessons", "--steps", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert log[0]["loss"] == pytest.approx(log[0]["task"] + log[0]["token_labels"], rel=1e-5)
    assert ts.spell(ts.applied(ts.load(tmp_path / "out"))) == "tome:r=[98,49,0,0,0,0,0,0,0,0,0,0]"
    wrong = fails(*common, "--steps", 1, "-o", tmp_path / "plain")
    assert "token_labels needs labels of patches, which this data set has not" in wrong


def test_the_demos_recipe_trains_a_dense_model_on_a_part_of_the_patches(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "scripts" / "digits_vit.yaml"
    result = call(
        "tokensieve_digits_vit", "--stage", "scratch", "--recipe", recipe, "--dataset", "digits", *QUICK, "--steps", 3,
        "--split", "lessons", "--amp", "--val-limit", 4, "--log-every", 1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert [line["step"] for line in log] == [1, 2, 3]
    trained, before = ts.load(tmp_path / "out"), timm.create_model("tokensieve_digits_vit")
    assert not ts.is_applied(trained)
    assert not torch.equal(trained.head.weight, before.head.weight)  # type: ignore[union-attr]


def test_patience_ends_a_run_and_keeps_the_best_weights(pictures: Path, tmp_path: Path) -> None:
    result = call(
        *MODEL, "--stage", "finetune", "-m", "tome:r=2", "--data", pictures, *QUICK, "--steps", 20, "--lr", "1e-12",
        "--val-data", pictures, "--metric", "top1", "--patience", 2, "--evaluate-every", 1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert log[-1]["step"] == 3  # nothing gets better at this rate: two evaluations after the first it ends


def test_a_dry_run_shows_the_plan_and_leaves_nothing(pictures: Path, tmp_path: Path) -> None:
    result = call(
        *MODEL, "--stage", "finetune", "-m", "evit:keep=0.5", "--data", pictures, *QUICK, "-o", tmp_path / "out",
        "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    for words in ("GMACs", "evit:keep=0.5", "180 (30.00 epochs of 6)", "Parameter groups", "weight decay", "1 · task"):
        assert words in result.output, words


def test_wrong_input_is_one_sentence(pictures: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    some = (*MODEL, "--data", pictures, *QUICK, *out)
    assert "unknown stage 'tune'" in fails(*some, "--stage", "tune")
    assert "does not exist" in fails(*MODEL, "--stage", "recover", "-m", "bat", "--data", tmp_path / "no", *out)
    assert "the stage recover needs a method" in fails(*some, "--stage", "recover")
    assert "the selectors are not fitted yet" in fails(*some, "--stage", "finetune", "-m", "tosa")
    assert "has no ToSA selectors" in fails(*some, "--stage", "selectors", "-m", "tome:r=2")
    assert "--second-pass is for --stage selectors" in fails(*some, "--stage", "recover", "-m", "bat", "--second-pass")
    assert "give a smaller --batch-size" in fails(*some, "--stage", "recover", "-m", "bat", "--batch-size", 64)
    assert "unknown recipe 'batt'" in fails(*some, "--stage", "finetune", "--recipe", "batt")
    assert "has no optimizer 'adamv'" in fails(*some, "--stage", "recover", "-m", "tome:r=2", "--opt", "adamv")
    assert "there is nothing to train" in fails(*some, "--stage", "recover", "-m", "tome:r=2", "--train-only", "none")
    assert "--metric needs images" in fails(*some, "--stage", "recover", "-m", "tome:r=2", "--metric", "top1")
    tome = (*some, "--stage", "recover", "-m", "tome:r=2")
    assert "timm has no schedule 'cosin' for this" in fails(*tome, "--sched", "cosin")
    assert "timm knows no augmentation aa = 'random'" in fails(*tome, "--aa", "random")
    assert "--device must be auto or cpu, got 'abacus'" in fails(*tome, "--device", "abacus")
    assert "does not exist: give --val-data FOLDER" in fails(*tome, "--val-data", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    nothing = fails(*MODEL, "--stage", "recover", "-m", "tome:r=2", "--data", tmp_path / "empty", *QUICK, *out)
    assert nothing.endswith("there is no image")  # and nothing about classes, which are not asked for
    assert "--resume must be auto" in fails(*some, "--stage", "recover", "-m", "tome:r=2", "--resume", "now")
    assert "images of 3 classes and the model 7" in fails(
        "test_vit", "--img-size", 64, "--num-classes", 7, "--data", pictures, *QUICK, *out, "--stage", "finetune",
        "-m", "tome:r=2",
    )  # fmt: skip
    assert not (tmp_path / "out" / "tokensieve.json").exists()
