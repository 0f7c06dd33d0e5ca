"""The verbs eval and bench under ``accelerate launch``: the figures of one process, said and written once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tokensieve as ts
from tokensieve.cli.app import app
from tokensieve.demo.digits import ClutteredDigits
from tokensieve.demo.model import digits_vit

pytest.importorskip("accelerate")
SPEED = ("speed",)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The launched processes have one thread each, and a sum over two threads can differ in its last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with ToMe, and 23 of its images in a folder a class, one of which cannot be read."""
    root = tmp_path_factory.mktemp("processes")
    ts.save(ts.apply(digits_vit(), "tome:r=4"), root / "model")
    digits = ClutteredDigits("val", 23, seed=7)
    for label in range(10):
        (root / "data" / str(label)).mkdir(parents=True)
    for index in range(23):
        digits.image(index).save(root / "data" / str(digits.scene(index).label) / f"{index:02}.png")
    (root / "data" / "4" / "zz.png").write_bytes(b"no picture")
    return root


def launch(*arguments: object, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU. Without --multi_gpu accelerate would start one: it leaves CPUs to MPI."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    start += ["-m", "tokensieve"] if script is None else [str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def alone(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def rows(file: Path) -> list[dict[str, Any]]:
    """What was measured, without times."""
    found: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in SPEED} for row in found]


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(place: Path, tmp_path: Path) -> None:
    # 24 files in batches of 5: three whole batches for one process, one whole and one of 4 for the other.
    common = ("eval", place / "model", "--data", place / "data", "-j", 0, "-b", 5)
    common += ("-m", "evit", "-m", "bat", "--macs", 0.5)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    alone(*common, "--results-file", one)
    done = launch(*common, "--results-file", two)
    assert done.returncode == 0, done.stderr
    assert rows(two) == rows(one)
    assert [row["images"] for row in rows(two)] == [23] * 4
    assert len({row["kl"] for row in rows(two)}) == 4 and rows(two)[1]["kl"] > 0
    assert " ".join(done.stdout.split()).count("23 images") == 1  # the title of a table folds
    assert done.stderr.count("written:") == 1
    assert done.stderr.count("1 image files cannot be read") == 1 and "zz.png" in done.stderr
    # What two have measured, one can go on with.
    alone(*common, "--results-file", two, "--resume")
    assert rows(two) == rows(one)


@pytest.mark.slow
def test_bench_times_on_the_main_process_and_leaves_none_behind_without_images(place: Path, tmp_path: Path) -> None:
    common = ("bench", place / "model", "--data", place / "data", "-j", 0, "-b", 4, "--limit", 3)
    common += ("--speed-batch-size", 1, "--rounds", 1)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    alone(*common, "--results-file", one)
    done = launch(*common, "--results-file", two)
    assert done.returncode == 0, done.stderr
    assert rows(two) == rows(one)
    speed = [row["speed"] for row in json.loads(two.read_text())["rows"]]
    assert [len(entries) for entries in speed] == [1, 1]
    assert two.with_suffix(".png").exists() and two.with_suffix(".csv").exists()
    assert done.stdout.count("Speed at batch 1") == 1


@pytest.mark.slow
def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    done = launch("eval", "test_vit", "--data", tmp_path / "absent")
    assert done.stderr.count("Error: the image folder") == 1, done.stderr
    assert re.search(r"\[0\]:(.|\n)*exitcode +: 2 ", done.stderr), "the command itself ends with exit code 2"
    assert done.returncode != 0 and not done.stdout
    usage = launch("eval", "test_vit", "--batchsize", 3)
    assert usage.stderr.count("No such option: --batchsize") == 1


FAILS_IN_ONE = """
import os
from tokensieve.cli.app import main
from tokensieve.errors import TokensieveError
from tokensieve.measure import benchmark as bench

def fails(*_, **__):
    raise TokensieveError("the second process cannot go on")

if os.environ["RANK"] == "1":
    bench.compare = fails
main()
"""


@pytest.mark.slow
def test_what_goes_wrong_in_one_process_is_said_by_that_one(place: Path, tmp_path: Path) -> None:
    script = tmp_path / "fails_in_one.py"
    script.write_text(FAILS_IN_ONE)
    done = launch("eval", place / "model", "--data", place / "data", "-j", 0, script=script)
    assert done.returncode != 0
    assert re.findall("Error: .*", done.stderr).count("Error: the second process cannot go on") == 1, done.stderr
