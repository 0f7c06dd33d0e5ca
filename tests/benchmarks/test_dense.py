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
from tokensieve.tasks.depth import Depth
from tokensieve.tasks.model import dense_model


def test_the_exponent_of_a_power() -> None:
    assert dense_cost.exponent([(x, 3 * x**1.7) for x in (196, 1024, 4096)]) == pytest.approx(1.7)


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
    ts.save(dense_model(timm.create_model("test_vit", img_size=128), Depth()), tmp_path / "run")
    output = tmp_path / "dense.json"
    arguments = ["--run", f"{tmp_path / 'run'}={tmp_path}", "--method", "tome", "--method", "expedite:sites=[]"]
    monkeypatch.setattr(sys, "argv", ["measure_dense.py", *arguments, "--factor", "1.2", "--output", str(output)])
    measure_dense.main()
    content = json.loads((tmp_path / "dense-run.json").read_text())
    assert [row["variant"].partition(":")[0] for row in content["rows"]] == ["dense", "tome"]
    assert content["rows"][1]["F"] == pytest.approx(1.2, abs=0.05)
    assert "expedite" in next(iter(content["left_out"]))
    assert "| `dense` |" in output.with_suffix(".md").read_text()
