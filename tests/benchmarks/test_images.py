"""Methods on images, pixel tasks among them, and one small run of the runner on each kind of model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import tokensieve as ts
from benchmarks.__main__ import main
from benchmarks.accuracy import relative_loss
from tokensieve.measure.results import DENSE, Row
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import pixel_model


def test_the_cost_of_a_depth_model_at_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["speed", "--model", "test_vit", "--batch", "1", "--head", "depth", "--method", "tome", "--factor", "1.2"]
    command += ["--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert main([*command, "--img-size", "64"]) == 0
    (file,) = tmp_path.glob("*.json")
    (name, first), *_ = json.loads(file.read_text())["cells"].items()
    assert name == "model/test_vit/64px/b1/float32/eager/depth/F1.2"
    assert [row["asked"] for row in first["rows"]] == ["dense", "tome:r=8"]
    assert first["rows"][1]["F"] == pytest.approx(1.2, abs=0.06) and first["rows"][1]["oracle_seconds"][0] > 0
    assert main(["growth", str(file)]) == 2
    assert "two image sizes" in capsys.readouterr().err
    assert main([*command, "--img-size", "64"]) == 2
    assert "--resume" in capsys.readouterr().err

    assert main([*command, "--img-size", "64", "--img-size", "96", "--resume"]) == 0
    cells = json.loads(file.read_text())["cells"]
    assert cells[name] == first and len(cells) == 2
    assert main(["growth", str(file)]) == 0
    written = file.with_name(f"{file.stem}-growth.md").read_text()
    assert "| `dense` |" in written and "| `tome:r=8` |" in written and "oracle's time ~ N^" in written
    assert file.with_name(f"{file.stem}-growth.png").stat().st_size


def test_a_loss_is_positive_where_the_figure_is_worse() -> None:
    dense, worse = (
        Row(name, 1, 1, metrics={"mIoU": m, "RMSE": r}) for name, m, r in ((DENSE, 50, 0.5), ("x", 49, 0.51))
    )
    assert relative_loss(worse, dense, "mIoU") == pytest.approx(2)
    assert relative_loss(worse, dense, "RMSE") == pytest.approx(2)
    assert relative_loss(Row("x", 1, 1), dense, "top1") is None


def test_pixel_tasks_at_equal_macs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, high, kept in (("images", 255, "uint8"), ("depth", 5000, "uint16")):
        (tmp_path / "val" / kind).mkdir(parents=True)
        for number in range(2):
            values = rng.integers(1, high, (64, 64, 3) if kind == "images" else (64, 64)).astype(kept)
            Image.fromarray(values).save(tmp_path / "val" / kind / f"{number}.png")
    ts.save(pixel_model(timm.create_model("test_vit", img_size=128), Depth()), tmp_path / "run")
    output = tmp_path / "depth.json"
    command = ["accuracy", str(tmp_path / "run"), "--data", str(tmp_path), "--method", "tome", "--factor", "1.2"]
    assert main([*command, "--method", "expedite:sites=[]", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert [row["variant"].partition(":")[0] for row in content["rows"]] == ["dense", "tome"]
    assert content["rows"][1]["F"] == pytest.approx(1.2, abs=0.05)
    assert "expedite" in next(iter(content["left_out"]))
    assert "| `dense` |" in output.with_suffix(".md").read_text()
    assert content["settings"]["model"] == "run"  # of a path that only this machine has, its name


def test_images_of_classes_at_equal_macs_beside_a_saved_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        (tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype("uint8"))
        picture.save(tmp_path / "images" / str(number % 2) / f"{number}.png")
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(map(str, range(1000))))
    ts.save(ts.apply(timm.create_model("test_vit"), "topk:keep=0.5"), tmp_path / "mine")
    output = tmp_path / "classes.json"
    command = ["accuracy", "test_vit", "--data", str(tmp_path / "images"), "--class-map", str(names)]
    command += ["--method", "bat:keep=0.5,0.7"]
    assert main([*command, "--trained", str(tmp_path / "mine"), "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["dense", "bat:keep=0.5", "bat:keep=0.7", "topk:keep=0.5, mine"]
    assert rows[0]["agreement"] == 100 and all(row["images"] == 4 for row in rows)
    assert main([*command, "--output", str(output)]) == 2


@pytest.mark.parametrize(("given", "code"), [([], 0), (["--help"], 0), (["sped"], 2)])
def test_the_runner_names_its_benchmarks(given: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == code
    told = capsys.readouterr()
    assert "'speed'" in told.err if code else "accuracy" in told.out
