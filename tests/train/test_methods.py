"""The methods with learned parts through a whole run of training: finite losses, and a folder that loads again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tokensieve as ts
from tokensieve.train.options import TrainOptions
from tokensieve.train.run import train

METHODS = {  # and whether they add to the loss
    "cropr:r=2:classes=3": True,
    "as-vit:start=0.004": True,
    "a-vit:scale=2:shift=0": True,
    "tokenlearner:tokens=4": False,
    "dtem:r=2": False,
    "psvit": False,
    "dynamicvit": True,
}


@pytest.mark.parametrize("spec", METHODS)
def test_a_run_trains_saves_and_loads(arguments: Callable[..., TrainOptions], tmp_path: Path, spec: str) -> None:
    train(arguments(method=spec, steps=2, log_every=1))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(records) == 2
    for record in records:
        names = [name for name in record if name.endswith("methods")]
        assert bool(names) == METHODS[spec] and all(math.isfinite(record[name]) for name in names)
    model = ts.load(tmp_path / "run").eval()
    assert ts.applied(model) == ts.parse(spec)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        answer = model(images)
        assert answer.isfinite().all()
        again = ts.load(ts.save(model, tmp_path / "again"))
        assert torch.equal(again.eval()(images), answer)
