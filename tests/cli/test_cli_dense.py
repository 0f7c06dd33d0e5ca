"""Pixel tasks on the command line: train a head, evaluate, time and show it; fit selectors; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokensieve as ts
from tests.helpers.calling import call, fails
from tokensieve.pixels.model import PixelModel

pytest.importorskip("accelerate", reason="the train extra is not installed")

MODEL = ("test_vit", "--img-size", "64,96")
QUICK = ("--batch-size", 2, "-j", 0, "--rounds", 0, "--device", "cpu", "--steps", 2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures in each of two splits, with masks of three classes and depth in millimetres."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks", "depth"):
            (root / split / kind).mkdir(parents=True)
        for number in range(4):
            size = (50 + number, 75)
            colours = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(colours).save(root / split / "images" / f"{number}.png")
            Image.fromarray(rng.integers(0, 3, size, dtype=np.uint8)).save(root / split / "masks" / f"{number}.png")
            depth = rng.integers(500, 5000, size, dtype=np.uint16)
            Image.fromarray(depth).save(root / split / "depth" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def segmenting(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained a linear head for two updates."""
    output = tmp_path_factory.mktemp("runs") / "linear"
    data = ("--data", scenes, "--val-data", scenes, "--metric", "mIoU")
    result = call("train", *MODEL, "--task", "segmentation", "--num-classes", 3, *data, *QUICK, "-o", output)
    assert result.exit_code == 0, result.output
    return output


def test_a_head_is_trained_and_the_backbone_stays(scenes: Path, segmenting: Path) -> None:
    model = ts.load(segmenting)
    assert isinstance(model, PixelModel) and model.head.name == "linear" and not ts.applied(model)
    log = [json.loads(line) for line in (segmenting / "log.jsonl").open()]
    assert {"loss", "segmentation", "val/mIoU", "val/pixel_accuracy"} <= log[-1].keys()
    (row,) = json.loads((segmenting / "bench.json").read_text())["rows"]
    assert row["variant"] == "dense" and {"mIoU", "pixel_accuracy", "agreement"} == row["metrics"].keys()
    assert "mIoU" in (segmenting / "report.md").read_text()
    started = ts.load(segmenting)
    again = call(
        "train", *MODEL, "--task", "segmentation", "--num-classes", 3, "--data", scenes, *QUICK, "-o", segmenting
    )
    assert again.exit_code == 2 and "holds a run" in again.stderr
    torch.testing.assert_close(started.state_dict(), model.state_dict())


def test_eval_and_bench_read_the_folder(scenes: Path, segmenting: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    asked = ("--data", scenes, "-j", 0, "-m", "tome:r=2", "-m", "algm")
    result = call("bench", segmenting, *asked, "--rounds", 1, "--speed-batch-size", 2, "--results-file", file)
    assert result.exit_code == 0, result.output
    assert "mIoU" in result.stdout and "top-1" not in result.stdout
    content = json.loads(file.read_text())
    assert [row["variant"] for row in content["rows"]] == ["dense", "tome:r=2", "algm:threshold=0.88"]
    assert content["rows"][1]["F"] > 1 and content["rows"][1]["speed"][0]["O"] is not None
    assert content["rows"][0]["metrics"]["agreement"] == 100 and "top1" not in content["rows"][0]
    assert content["settings"]["task"]["name"] == "segmentation"
    assert file.with_suffix(".png").exists() and "mIoU" in file.with_suffix(".csv").read_text()
    resumed = call(
        "bench", segmenting, *asked, "--rounds", 1, "--speed-batch-size", 2, "--results-file", file, "--resume"
    )
    assert resumed.exit_code == 0 and json.loads(file.read_text())["rows"] == content["rows"]


def test_windows_slide_over_images_of_any_size(scenes: Path, segmenting: Path) -> None:
    result = call("eval", segmenting, "--data", scenes, "-j", 0, "--slide", 90, "--stride", 50, "-m", "tome:r=2")
    assert result.exit_code == 0, result.output
    assert "tome:r=2" in result.stdout
    assert "give --slide N" in fails("eval", segmenting, "--data", scenes, "--stride", 50)


def test_windows_larger_than_the_images(scenes: Path, segmenting: Path) -> None:
    """Their short side is brought to 30 pixels, and the window has 64 × 96."""
    result = call("eval", segmenting, "--data", scenes, "-j", 0, "--slide", 30, "-m", "ailurus:sites=[2]")
    assert result.exit_code == 0, result.output
    assert "ailurus" in result.stdout


def test_targets_in_which_nothing_counts(scenes: Path, segmenting: Path, tmp_path: Path) -> None:
    """Void masks and depth of zeros: the reduced model is compared with the dense one, and nothing can be learned."""
    for split in ("train", "val"):
        for kind, values in (("masks", np.full((50, 75), 255, np.uint8)), ("depth", np.zeros((50, 75), np.uint16))):
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(values).save(tmp_path / split / kind / f"{number}.png")
        (tmp_path / split / "images").symlink_to(scenes / split / "images")
    result = call("eval", segmenting, "--data", tmp_path, "-j", 0, "-m", "tome:r=2")
    assert result.exit_code == 0, result.output
    assert "agreement" in result.stdout and "mIoU" not in result.stdout
    assert "no target has a pixel that counts" in result.stderr and "--ignore-index" in result.stderr
    asked = ("train", *MODEL, "--data", tmp_path, *QUICK, "-o", tmp_path / "run")
    assert "none of 2 targets has a pixel that counts" in fails(*asked, "--task", "segmentation", "--num-classes", 3)
    assert "depths from 0.001 to 10 metres count" in fails(*asked, "--task", "depth")
    # One valid pixel is enough.
    mask = np.full((50, 75), 255, np.uint8)
    mask[7, 9] = 1
    Image.fromarray(mask).save(tmp_path / "train" / "masks" / "1.png")
    learned = call(*asked, "--task", "segmentation", "--num-classes", 3)
    assert learned.exit_code == 0, learned.output


def test_sizes_that_patches_do_not_cover(scenes: Path, tmp_path: Path) -> None:
    """A model that takes any size refuses them in a sentence; one of fixed size leaves the pixels beyond out."""
    data = ("--data", scenes, *QUICK, "--task", "depth")
    told = fails("train", "test_vit", "--img-size", "67,96", *data, "-o", tmp_path / "no")
    assert "multiples of its patches, 16 pixels, and --img-size has 67: give 64 or 80" in told
    odd = ("deit_tiny_patch16_224", "--img-size", "39,51")
    result = call("train", *odd, *data, "-o", tmp_path / "odd")
    assert result.exit_code == 0, result.output
    for spec in ("expedite", "ailurus", "algm", "cubist"):
        shown = call("show", tmp_path / "odd", scenes / "val/images/0.png", "-m", spec, "-o", tmp_path / f"{spec}.png")
        assert shown.exit_code == 0, shown.output


def test_depth_with_every_head(scenes: Path, tmp_path: Path) -> None:
    for head in ("linear", "dpt", "segmenter"):
        output = tmp_path / head
        asked = ("--task", "depth", "--head", head, "--max-depth", 8, "--data", scenes, "--val-data", scenes)
        result = call("train", "test_vit", "--img-size", "64,96", *asked, *QUICK, "-o", output)
        if head == "dpt" and result.exit_code == 2:  # timm's test_vit has two blocks
            assert "reads 4 blocks" in result.stderr
            continue
        assert result.exit_code == 0, result.output
        result = call("eval", output, "--data", scenes, "-j", 0, "-m", "tosa:keep=0.5:score=own", "--median-scaling")
        assert result.exit_code == 0, result.output
        assert "RMSE" in result.stdout and "SILog" in result.stdout


def test_selectors_and_recovery_of_a_dense_model(scenes: Path, segmenting: Path, tmp_path: Path) -> None:
    fitted, recovered = tmp_path / "fitted", tmp_path / "recovered"
    asked = ("--data", scenes, *QUICK)
    result = call("train", segmenting, "--stage", "selectors", "-m", "tosa:keep=0.5", *asked, "-o", fitted)
    assert result.exit_code == 0, result.output
    before = ts.load(segmenting).state_dict()
    after = ts.load(fitted).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    result = call("train", fitted, "--stage", "recover", *asked, "--lr", "1e-3", "-o", recovered)
    assert result.exit_code == 0, result.output
    changed = {name.partition(".")[0] for name, value in ts.load(recovered).state_dict().items()
               if name in before and not torch.equal(before[name], value)}  # fmt: skip
    assert changed == {"backbone"}
    assert "not finetune" in fails("train", segmenting, "--stage", "finetune", "-m", "tome:r=2", *asked, "-o", tmp_path)


def test_show_lays_predictions_side_by_side(scenes: Path, segmenting: Path, tmp_path: Path) -> None:
    picture = scenes / "val" / "images" / "0.png"
    for name in ("p.png", "p.html"):
        result = call("show", segmenting, picture, "-m", "tome:r=2", "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
    page = (tmp_path / "p.html").read_text()
    assert all(title in page for title in ("dense prediction", "reduced prediction", "difference"))
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 5 * 420
    result = call("show", *MODEL, picture, "--task", "depth", "-m", "tome:r=2", "-o", tmp_path / "d.png")
    assert result.exit_code == 0 and "random" in result.stderr


def test_wrong_input_is_one_sentence(scenes: Path, segmenting: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    dense = ("train", *MODEL, "--data", scenes, *QUICK, *out)
    assert "unknown task 'depths', did you mean 'depth'?" in fails(*dense, "--task", "depths", "--stage", "head")
    assert "what is to be trained? Give --stage" in fails(*dense)
    assert "give --num-classes" in fails(*dense, "--task", "segmentation")
    assert "--num-classes is not for depth" in fails(*dense, "--task", "depth", "--num-classes", 3)
    assert "--ignore-index is not for depth" in fails(*dense, "--task", "depth", "--ignore-index", 3)
    assert "unknown head 'conv'" in fails(*dense, "--task", "depth", "--head", "conv")
    assert "the stage head trains the head of a pixel task" in fails(*dense, "--stage", "head")
    assert "a head is trained once, on the dense backbone" in fails(*dense, "--task", "depth", "-m", "tome:r=2")
    assert "--metric must be delta1 or delta2" in fails(*dense, "--task", "depth", "--metric", "RMSE")
    here = ("eval", segmenting, "--data", scenes)
    assert "the saved model is for segmentation and --task asks for depth" in fails(*here, "--task", "depth")
    assert "has a linear head" in fails(*here, "--head", "dpt")
    assert "has its own number of classes" in fails(*here, "--task", "segmentation", "--num-classes", 5)
    assert "--crop-pct is for classification" in fails(*here, "--crop-pct", 0.9)
    assert "--head is for pixel tasks" in fails("eval", "test_vit", "--data", scenes, "--head", "dpt")
    assert "has class 2, and the classes are 0 to 1" in fails(
        "train", *MODEL, "--data", scenes, *QUICK, *out, "--task", "segmentation", "--num-classes", 2
    )
    assert "expected one number, or height and width" in call("eval", "test_vit", "--img-size", "1,2,3").stderr
