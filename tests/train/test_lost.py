"""Nothing is lost: NaN, a full disk, two runs in one folder, and what is refused."""

import dataclasses
import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tokensieve as ts
from tokensieve.train import state
from tokensieve.train.loop import Told
from tokensieve.train.losses import Step
from tokensieve.train.options import TrainOptions
from tokensieve.train.run import train
from tokensieve.train.state import Run

Make = Callable[..., TrainOptions]


class Poison:
    """A term that is not a number from some step on."""

    name = "poison"
    weight = 1.0
    teacher = False
    features = False

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, step: Step) -> Tensor:
        value = torch.nan if step.progress >= self.start else 0.0
        return step.outputs.logits.sum() * value


def test_a_loss_that_is_not_finite_stops_and_the_last_good_checkpoint_stays(arguments: Make) -> None:
    given = arguments(steps=8)
    with pytest.raises(ts.TokensieveError, match=r"the loss is nan at step 6: the last good checkpoint is kept"):
        train(given, terms=[Poison(5 / 8)])
    kept = sorted(path.name for path in (Path(given.output) / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000004"]
    weights = load_file(Path(given.output) / "checkpoints" / kept[-1] / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    train(dataclasses.replace(given, resume="auto"))
    assert ts.load(given.output)(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_a_full_disk_keeps_the_checkpoint_before(arguments: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments()
    write, calls = state._write_tensors, 0

    def full(path: Path, tensors: dict[str, Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(state, "_write_tensors", full)
    with pytest.raises(ts.TokensieveError, match=r"step-00000004.*No space left on device; the last good checkpoint"):
        train(given)
    kept = [path.name for path in (Path(given.output) / "checkpoints").iterdir()]
    assert kept == ["step-00000002"]
    monkeypatch.setattr(state, "_write_tensors", write)
    train(dataclasses.replace(given, resume="auto"))
    other = arguments(output=given.output + "-whole")
    train(other)
    assert weights_of(given.output) == weights_of(other.output)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_a_file_that_the_system_refuses_to_write_keeps_the_checkpoint_before(arguments: Make) -> None:
    """The same with a write that fails in the kernel, half way through a file."""
    import resource

    given = arguments()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(told: Told) -> None:
        if told.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))

    try:
        with pytest.raises(ts.TokensieveError, match=r"step-00000004.*the last good checkpoint is kept"):
            train(given, on_step=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (Path(given.output) / "checkpoints").iterdir()] == ["step-00000002"]
    train(dataclasses.replace(given, resume="auto"))
    other = arguments(output=given.output + "-whole")
    train(other)
    assert weights_of(given.output) == weights_of(other.output)


def weights_of(folder: str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_two_runs_in_one_folder_are_refused(arguments: Make) -> None:
    given = arguments()
    train(given)
    held = Run(Path(given.output))
    with pytest.raises(ts.TokensieveError, match="another run is writing to"):
        train(dataclasses.replace(given, resume="auto"))
    held.release()
    train(dataclasses.replace(given, resume="auto"))


def test_a_folder_that_holds_a_run_is_not_overwritten(arguments: Make) -> None:
    given = arguments()
    train(given)
    with pytest.raises(ts.TokensieveError, match=r"holds a run: go on with --resume auto, start anew with --force"):
        train(given)
    with pytest.raises(ts.TokensieveError, match="was started with seed = 0 and cannot be resumed with 1"):
        train(dataclasses.replace(given, seed=1, resume="auto"))
    before = weights_of(given.output)
    train(dataclasses.replace(given, seed=1, force=True))
    assert weights_of(given.output) != before


def test_a_folder_of_something_else_is_not_touched(arguments: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ts.TokensieveError, match="holds other files and no run"):
        train(arguments(output=str(tmp_path / "mine"), force=True))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    empty = {"state": {}, "param_groups": []}
    run.save(state.State(1, {"w": torch.ones(2)}, empty))
    with pytest.raises(ts.TokensieveError, match="w is not finite after step 2: the last good checkpoint is kept"):
        run.save(state.State(2, {"w": torch.tensor([1.0, torch.inf])}, empty))
    loaded = run.load()
    assert loaded is not None and loaded.step == 1


def test_the_random_states_come_back() -> None:
    saved = json.loads(json.dumps(state.random_state()))
    drawn = torch.rand(3)
    state.set_random_state(saved)
    assert torch.equal(torch.rand(3), drawn)
