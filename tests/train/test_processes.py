"""Several processes do what one does: the same gradients, and sharded checkpoints that one process reads."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tokensieve as ts
from tokensieve.cli.app import app

SMALL = [
    "train",
    "test_vit",
    "--img-size",
    "64",
    "--num-classes",
    "3",
    "--no-aug",
    "-j",
    "0",
    "--rounds",
    "0",
    "--device",
    "cpu",
]


def launch(processes: int, *arguments: object, sharded: bool = False) -> None:
    """``tokensieve`` under ``accelerate launch`` on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    # With --cpu accelerate would start one process; --multi_gpu starts as many as asked for, with or without a GPU.
    kind = ["--use_fsdp", "--fsdp_version", "2"] if sharded else ["--multi_gpu"] if processes > 1 else []
    command += ["--main_process_port", str(port), *kind]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tokensieve", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def alone(*arguments: object) -> None:
    """``tokensieve`` in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["--stage", "finetune"], ["--stage", "recover", "--distill-features", "1"]])
def test_two_processes_give_the_gradients_of_one_with_twice_the_batch(
    pictures: Path, tmp_path: Path, loss: list[str]
) -> None:
    common = [
        *SMALL,
        *loss,
        "--recipe",
        "recover" if "recover" in loss else "bat",
        "-m",
        "tome:r=2",
        "--data",
        pictures,
    ]
    # One update of plain gradient descent at rate 1: the weights lose exactly the gradient.
    common += ["--opt", "sgd", "--lr", "1", "--weight-decay", "0", "--sched", "step", "--steps", "1"]
    common += ["--mixup", "0", "--cutmix", "0"]
    alone(*common, "--batch-size", 8, "-o", tmp_path / "one")
    launch(2, *common, "--batch-size", 4, "-o", tmp_path / "two")
    alone(*common, "--batch-size", 4, "--grad-accum-steps", 2, "-o", tmp_path / "passes")
    one, two, passes = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "passes"))
    torch.manual_seed(0)
    started = load_file(tmp_path / "one" / "checkpoints" / "step-00000001" / "model.safetensors")
    assert started.keys() >= {f"model.{name}" for name in one}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(passes[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_as_if_it_had_not_stopped(pictures: Path, tmp_path: Path) -> None:
    common = [*SMALL, "--stage", "finetune", "-m", "tome:r=2", "--data", pictures, "--lr", "1e-3"]
    common += ["--drop-path", "0.2", "--batch-size", "4", "--steps", "4", "--checkpoint-every", "2"]
    run = tmp_path / "run"
    launch(2, *common, "-o", run)
    whole = (run / "model.safetensors").read_bytes()
    for left in (run / "model.safetensors", run / "tokensieve.json"):
        left.unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000004")  # as if it had been killed behind the second update
    alone = CliRunner().invoke(app, [str(word) for word in (*common, "-o", run, "--resume", "auto")])
    assert alone.exit_code == 2
    assert "the checkpoint is of 2 processes and this run has 1: start as many" in " ".join(alone.stderr.split())
    launch(2, *common, "-o", run, "--resume", "auto")
    assert (run / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_sharded_run_saves_what_one_process_reads(pictures: Path, tmp_path: Path) -> None:
    common = [
        *SMALL,
        "--stage",
        "finetune",
        "-m",
        "tome:r=2",
        "--data",
        pictures,
        "--lr",
        "1e-3",
        "--checkpoint-every",
        2,
    ]
    common += ["--mixup", "0", "--cutmix", "0", "--val-data", pictures, "--batch-size"]
    launch(2, *common, 4, "--steps", 4, "-o", tmp_path / "sharded", sharded=True)
    launch(2, *common, 4, "--steps", 4, "-o", tmp_path / "copied")
    sharded, copied = (load_file(tmp_path / name / "model.safetensors") for name in ("sharded", "copied"))
    for name, value in copied.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-5, msg=name)
    model = ts.load(tmp_path / "sharded")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.slow
def test_two_processes_pretrain(pictures: Path, tmp_path: Path) -> None:
    """The teacher moves within a wrapped objective too, and the result is the model of the checkpoint."""
    common = [*SMALL, "--stage", "pretrain", "--data", pictures, "--batch-size", 4, "--steps", "2"]
    launch(2, *common, "-o", tmp_path / "two")
    weights = load_file(tmp_path / "two" / "model.safetensors")
    state = load_file(tmp_path / "two" / "checkpoints" / "step-00000002" / "model.safetensors")
    assert state["centre"].any() and all(value.isfinite().all() for value in state.values())
    assert all(torch.equal(state[f"model.{name}"], value) for name, value in weights.items())
