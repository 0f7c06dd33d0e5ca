"""A run that is killed at any moment and resumed ends with the same weights, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

COMMON: dict[str, Any] = {
    "model": "test_vit",
    "img_size": 64,
    "num_classes": 3,
    "workers": 0,
    "device": "cpu",
    "rounds": 0,
    "checkpoint_every": 3,
}
FINETUNE: dict[str, Any] = {
    "stage": "finetune",
    "method": "tome:r=2",
    "recipe": "bat",
    "changes": {"batch_size": 4, "lr": 1e-3, "model_ema": True, "drop_path": 0.2, "distill_logits": 1.0},
}
# Which patches are read is drawn for every update, and how many changes on the way.
FEWER_PATCHES: dict[str, Any] = {
    "stage": "scratch",
    "recipe": "scratch",
    "changes": {"batch_size": 4, "lr": 1e-3, "patch_drop_rate": [0.7, 0.5, 0.25]},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "kills"),
    [
        (FINETUNE, 10),
        (FEWER_PATCHES, 2),
    ],
)
def test_killed_and_resumed_ends_like_a_run_that_was_not(
    run: dict[str, Any], kills: int, pictures: Path, tmp_path: Path
) -> None:
    # More updates than can be done between the kills.
    options = COMMON | run | {"data": [str(pictures)], "steps": 10 + 8 * kills}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = json.dumps([options, str(whole), str(broken), kills, 5])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killing", given],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == [True] * kills
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    steps = [[json.loads(line)["step"] for line in (f / "log.jsonl").open()] for f in (whole, broken)]
    assert steps[0] == steps[1] == sorted(set(steps[0]))
    assert len([name for name in told["left"] if name.startswith("step-")]) == 2
