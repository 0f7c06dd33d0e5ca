"""The verbs bench, eval, methods and families, with right and with wrong input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.calling import call, fails
from tokensieve.families._locate import list_families
from tokensieve.measure import benchmark as measuring
from tokensieve.methods import _registry as registry

MODEL = "test_vit"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three classes, numbered by a class map of two thousand names less one half."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for label in ("c1", "c2", "c3"):
        (root / "val" / label).mkdir(parents=True)
        for number in range(2):
            pixels = torch.randint(0, 256, (170, 170, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / "val" / label / f"{number}.png")
    (root / "class_map.txt").write_text("".join(f"c{i}\n" for i in range(1000)))
    return root


def test_bench_measures_writes_and_resumes(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    common = ("bench", MODEL, "--data", images / "val", "-j", 0, "-b", 4, "--rounds", 1, "--speed-batch-size", 2)
    common += ("--results-file", file)
    result = call(*common, "--method", "evit:keep=0.5,0.7")
    assert result.exit_code == 0, result.output
    assert "class_map.txt" in result.stderr
    assert "evit:keep=0.5" in result.stdout
    content = json.loads(file.read_text())
    assert [row["variant"] for row in content["rows"]] == ["dense", "evit:keep=0.5", "evit:keep=0.7"]
    assert content["rows"][1]["images"] == 6
    assert content["rows"][1]["speed"][0]["batch"] == 2
    assert file.with_suffix(".csv").exists() and file.with_suffix(".png").exists()
    assert "exists" in fails(*common, "--method", "evit")
    assert call(*common, "--resume", "--method", "evit:keep=0.5", "--method", "tome:r=2").exit_code == 0
    resumed = json.loads(file.read_text())["rows"]
    assert resumed[:3] == content["rows"]
    assert resumed[3]["variant"] == "tome:r=2"
    assert "measured with limit" in fails(*common, "--resume", "--limit", 2)


def test_eval_skips_and_names_images_that_cannot_be_read(images: Path, tmp_path: Path) -> None:
    for label, name in (("c1", "good"), ("c1", "bad"), ("c2", "worse")):
        (tmp_path / label).mkdir(exist_ok=True)
        content = (images / "val" / "c1" / "0.png").read_bytes()
        (tmp_path / label / f"{name}.png").write_bytes(content if name == "good" else content[:300])
    arguments = ("eval", MODEL, "--data", tmp_path, "--class-map", images / "class_map.txt", "-j", 0)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "1 images" in result.stdout
    assert "2 image files" in result.stderr and "bad.png" in result.stderr
    (tmp_path / "c1" / "good.png").unlink()
    assert "none of the 2 image files can be read" in fails(*arguments)


@pytest.mark.slow
def test_all_methods_at_the_same_macs_and_why_some_are_left_out(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    common = ("eval", "vit_tiny_patch16_224", "--img-size", 160, "--data", images / "val", "-j", 0, "-b", 6)
    result = call(*common, "--method", "all", "--macs", 0.65, "--results-file", file)
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    rows, left_out = content["rows"], content["left_out"]
    named = {row["variant"].partition(":")[0] for row in rows[1:]}
    out = {name.partition(" at ")[0] for name in left_out}
    assert named | out == set(registry.list_methods()) and not named & out
    assert {"tome", "bat", "ppt", "dpc-knn", "ats-share", "evo-vit"} <= named
    assert all(
        registry.list_methods()[name].trained != (name in named) for name in registry.list_methods() if name != "ats"
    )
    assert "must be trained" in left_out["tosa"] and "no option that sets its cost" in left_out["ats at 0.65"]
    for row in rows[1:]:
        assert row["gmacs"] / rows[0]["gmacs"] == pytest.approx(0.65, abs=0.03), row["variant"]
    assert all(f"left out: {name}" in result.stderr for name in left_out)
    assert file.with_suffix(".png").exists()


def test_wrong_input_ends_in_one_sentence(images: Path, tmp_path: Path) -> None:
    data = ("--data", images / "val", "-j", 0)
    assert "did you mean 'deit_tiny_patch16_224'" in fails("eval", "deit_tiny_patch16_244", *data)
    assert "did you mean 'tome'" in fails("eval", MODEL, *data, "--method", "tom:r=3")
    assert "did you mean 'keep'" in fails("eval", MODEL, *data, "--method", "evit:kep=0.3")
    assert "keep" in fails("eval", MODEL, *data, "--method", "evit:keep=1.5")
    assert "does not exist" in fails("eval", MODEL, "--data", tmp_path / "absent")
    assert "--data" in fails("eval", MODEL)
    assert "there is no image" in fails("eval", MODEL, "--data", tmp_path)
    assert "is not a file" in fails("eval", MODEL, *data, "--checkpoint", tmp_path / "absent.pth")
    assert "share" in fails("eval", MODEL, *data, "--method", "evit", "--macs", 3)
    assert "device" in fails("eval", MODEL, *data, "--device", "abacus")
    assert "must end in .json" in fails("eval", MODEL, *data, "--results-file", tmp_path / "r.txt")
    assert "No such option" in fails("eval", MODEL, *data, "--batchsize", 3)
    assert "there is none" in fails("eval", MODEL, *data, "--macs", 0.5)
    assert "both are given" in fails("eval", MODEL, *data, "--pretrained", "--checkpoint", tmp_path / "absent.pth")
    assert "no backend 'inducter', did you mean 'inductor'" in fails("eval", MODEL, *data, "--torchcompile", "inducter")
    assert "device 'meta' is not available" in fails("eval", MODEL, *data, "--device", "meta")
    assert "unknown data set" in fails("eval", MODEL, *data, "--dataset", "nope/x")
    assert "crop_pct" in fails("eval", MODEL, *data, "--crop-pct", 0)
    assert "'bilinear'" in fails("eval", MODEL, *data, "--interpolation", "bilinaer")
    assert "one for each channel" in fails("eval", MODEL, *data, "--mean", "0.5,0.5")
    assert "expected numbers with commas" in fails("eval", MODEL, *data, "--std", "half")
    assert "smaller than one patch" in fails("eval", MODEL, *data, "--img-size", 7)
    assert "1 or 3 channels" in fails("eval", MODEL, *data, "--in-chans", 4)


def test_all_options_of_the_transform_are_used(images: Path) -> None:
    asked = ("--mean", "0.4,0.5,0.6", "--std", 0.5, "--crop-pct", 0.8, "--interpolation", "bilinear", "--img-size", 96)
    result = call("eval", MODEL, "--data", images / "val", "-j", 0, "-b", 3, *asked, "-m", "tome:r=2")
    assert result.exit_code == 0, result.output
    assert "tome:r=2" in result.stdout


def test_what_nobody_foresaw_is_one_sentence_too(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise KeyError("inner")

    monkeypatch.setattr(measuring, "bench", breaks)
    arguments = ("eval", MODEL, "--data", images / "val", "-j", 0)
    result = call(*arguments)
    assert result.exit_code == 1
    assert "KeyError: 'inner'; this was not foreseen" in " ".join(result.stderr.split())
    assert isinstance(call(*arguments, "--verbose").exception, KeyError)


def test_too_little_memory_says_what_to_do(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(measuring, "bench", breaks)
    assert "--batch-size" in fails("eval", MODEL, "--data", images / "val", "-j", 0)


@pytest.mark.parametrize("phase", ["accuracy", "timing"])
def test_ctrl_c_keeps_what_is_done(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    file = tmp_path / "r.json"
    common = ("bench", MODEL, "--data", images / "val", "-j", 0, "-b", 3, "--rounds", 2, "--speed-batch-size", 1)
    common += ("--speed-batch-size", 2, "--results-file", file, "--method", "tome:r=2,3")
    calls = 0

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    module, name = (measuring, "compare") if phase == "accuracy" else (measuring, "time_variants")
    whole = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        stopped = call(*common)
    assert stopped.exit_code == 130
    assert "stopped; what is done is kept, go on with --resume" in " ".join(stopped.stderr.split())
    rows = json.loads(file.read_text())["rows"]
    done = [(row["variant"], [speed["batch"] for speed in row["speed"]]) for row in rows]
    if phase == "accuracy":
        assert done == [("dense", []), ("tome:r=2", [])]
    else:
        assert done == [("dense", [1]), ("tome:r=2", [1]), ("tome:r=3", [1])]
    assert "tome:r=2" in stopped.stdout and file.with_suffix(".png").exists()
    assert call(*common, "--resume").exit_code == 0
    resumed = json.loads(file.read_text())["rows"]
    assert [[speed["batch"] for speed in row["speed"]] for row in resumed] == [[1, 2]] * 3
    assert all(row["speed"][: len(old["speed"])] == old["speed"] for row, old in zip(resumed, rows, strict=False))


def test_classes_that_are_not_the_models_are_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "cat" / "0.png")
    assert "images of 1 classes and the model 1000 classes" in fails("eval", MODEL, "--data", tmp_path)
    wrong = ("--data", images / "val", "--num-classes", 3, "--class-map", images / "class_map.txt")
    assert "1000 classes and the model 3" in fails("eval", MODEL, *wrong)


def test_methods_and_families_come_from_the_registry() -> None:
    listed = call("methods").stdout
    assert all(name in listed for name in registry.list_methods())
    for name, method in registry.list_methods().items():
        card = call("methods", name).stdout
        assert all(option in card for option in method.option_types())
        assert "share" in card or method.knob != "keep"
    assert "did you mean 'tome'" in fails("methods", "tomme")
    assert all(name in call("families").stdout for name in list_families())
