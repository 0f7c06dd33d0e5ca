"""The arithmetic of the dense benchmarks, and one small run of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import dense_cost
import measure_dense
import tokensieve as ts
from tokensieve.measure.results import DENSE, Row
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import pixel_model


def test_the_exponents_of_powers() -> None:
    rows = [
        {"asked": name, "patches": n, "seconds": 3 * n**power, "peak_memory": 5 * n}
        for name, power in (("dense", 1.7), ("tome", 1.2))
        for n in (196, 1024, 4096)
    ]
    found = dense_cost.exponents(rows)
    assert {name: one["seconds"] for name, one in found.items()} == pytest.approx({"dense": 1.7, "tome": 1.2})
    assert found["tome"]["peak_memory"] == pytest.approx(1) and "oracle_seconds" not in found["tome"]
    assert dense_cost.exponents(rows[:1]) == {}


def test_the_cost_at_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "cost.json"
    command = ["test_vit", "--method", "tome", "--factor", "1.2", "--rounds", "1", "--output", str(output)]
    assert dense_cost.main([*command, "--img-size", "64"]) == 0
    assert not output.with_suffix(".png").exists()
    first = json.loads(output.read_text())["rows"]
    assert [row["variant"].partition(":")[0] for row in first] == ["dense", "tome"]
    assert first[1]["F"] == pytest.approx(1.2, abs=0.06) and first[1]["oracle_seconds"] > 0
    assert dense_cost.main([*command, "--img-size", "64"]) == 2
    assert "--resume keeps what it has" in capsys.readouterr().err

    assert dense_cost.main([*command, "--img-size", "64", "--img-size", "96", "--resume"]) == 0
    content = json.loads(output.read_text())
    assert content["rows"][:2] == first and [row["patches"] for row in content["rows"]] == [16, 16, 36, 36]
    assert set(content["exponents"]) == {"dense", "tome"}
    assert output.with_suffix(".png").stat().st_size and "exponent of time" in output.with_suffix(".md").read_text()
    assert dense_cost.main([*command, "--img-size", "64", "--resume", "--dtype", "bf16"]) == 2


def test_a_loss_is_positive_where_the_figure_is_worse() -> None:
    dense, worse = (
        Row(name, 1, 1, metrics={"mIoU": m, "RMSE": r}) for name, m, r in ((DENSE, 50, 0.5), ("x", 49, 0.51))
    )
    assert measure_dense.relative_loss(worse, dense, "mIoU") == pytest.approx(2)
    assert measure_dense.relative_loss(worse, dense, "RMSE") == pytest.approx(2)


def test_a_table_at_equal_macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for kind, high, kept in (("images", 255, "uint8"), ("depth", 5000, "uint16")):
        (tmp_path / "val" / kind).mkdir(parents=True)
        for number in range(2):
            values = rng.integers(1, high, (64, 64, 3) if kind == "images" else (64, 64)).astype(kept)
            Image.fromarray(values).save(tmp_path / "val" / kind / f"{number}.png")
    ts.save(pixel_model(timm.create_model("test_vit", img_size=128), Depth()), tmp_path / "run")
    output = tmp_path / "dense.json"
    arguments = ["--run", f"{tmp_path / 'run'}={tmp_path}", "--method", "tome", "--method", "expedite:sites=[]"]
    monkeypatch.setattr(sys, "argv", ["measure_dense.py", *arguments, "--factor", "1.2", "--output", str(output)])
    measure_dense.main()
    content = json.loads((tmp_path / "dense-run.json").read_text())
    assert [row["variant"].partition(":")[0] for row in content["rows"]] == ["dense", "tome"]
    assert content["rows"][1]["F"] == pytest.approx(1.2, abs=0.05)
    assert "expedite" in next(iter(content["left_out"]))
    assert "| `dense` |" in output.with_suffix(".md").read_text()
