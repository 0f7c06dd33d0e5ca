"""Checkpoints of a run: safetensors and JSON, nothing pickled, each whole or not there at all.

``checkpoints/step-00000120/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``ema.safetensors`` where there
is one, and ``state.json``. It is written beside under another name, flushed to the disk, and renamed; only then does
the one before the last go. So whatever happens, and whenever, the newest folder of that name is complete.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.models.checkpoint import read_weights

FORMAT = 1
KEPT = 2  # checkpoints that stay


@dataclass
class State:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: updates done.
        model: every tensor of the objective.
        optimizer: as ``torch.distributed.checkpoint.state_dict`` gives it, by parameter name.
        ema: the moving average, or None.
        scaler: of float16 training, or None.
        rng: the random states of every process, in order.
        best: the best value of the metric so far, its step, and evaluations since; empty before the first.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, Tensor] | None = None
    scaler: dict[str, Any] | None = None
    rng: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)


class Run:
    """The folder of a run, held by one process at a time.

    Args:
        folder: made where it is missing.

    Raises:
        TokensieveError: another run writes to it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # The kernel releases it when the process ends, however it ends.
            self._lock = filelock.FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise TokensieveError(
                f"another run is writing to {str(folder)!r}: wait for it, or give another --output"
            ) from error
        except OSError as error:
            raise TokensieveError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error

    def release(self) -> None:
        """Let another run have the folder."""
        self._lock.release()

    def clear(self) -> None:
        """Forget the checkpoints."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def save(self, state: State) -> Path:
        """Write a checkpoint.

        Raises:
            TokensieveError: a weight is not a finite number, or the disk is full; what was there before is kept.
        """
        bad = next((name for name, value in state.model.items() if not torch.isfinite(value).all()), None)
        if bad is not None:
            raise TokensieveError(f"{bad} is not finite after step {state.step}: {self.kept()}; lower --lr")
        target = self.checkpoints / f"step-{state.step:08d}"
        beside = self.checkpoints / ".writing"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            tensors, numbers = _split(state.optimizer)
            _write_tensors(beside / "model.safetensors", state.model)
            _write_tensors(beside / "optimizer.safetensors", tensors)
            if state.ema is not None:
                _write_tensors(beside / "ema.safetensors", state.ema)
            facts = {"format": FORMAT, "step": state.step, "optimizer": numbers, "scaler": state.scaler}
            _write_text(beside / "state.json", json.dumps(facts | {"rng": state.rng, "best": state.best}))
            shutil.rmtree(target, ignore_errors=True)
            beside.rename(target)
            _flush(self.checkpoints)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise TokensieveError(f"cannot write checkpoint {str(target)!r}: {reason}; {self.kept()}") from error
        for old in self._complete()[:-KEPT]:
            gone = old.rename(old.with_name(f".old-{old.name}"))  # half of one must not look like one
            shutil.rmtree(gone, ignore_errors=True)
        return target

    def kept(self) -> str:
        """What there is to go on with, in words."""
        found = self._complete()
        if not found:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is kept, {str(found[-1])!r}, go on with --resume auto"

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return bool(self._complete())

    def load(self) -> State | None:
        """The newest checkpoint, or None.

        Raises:
            TokensieveError: it is damaged.
        """
        found = self._complete()
        if not found:
            return None
        newest = found[-1]
        try:
            facts = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokensieveError(f"the checkpoint {str(newest)!r} is damaged: remove that folder") from error
        if facts.get("format") != FORMAT:
            raise TokensieveError(f"the checkpoint {str(newest)!r} has format {facts.get('format')!r}, not {FORMAT}")
        ema = newest / "ema.safetensors"
        return State(
            step=facts["step"],
            model=read_weights(newest / "model.safetensors"),
            optimizer=_join(read_weights(newest / "optimizer.safetensors"), facts["optimizer"]),
            ema=read_weights(ema) if ema.exists() else None,
            scaler=facts["scaler"],
            rng=facts["rng"],
            best=facts["best"],
        )

    def save_best(self, model: dict[str, Tensor], step: int) -> None:
        """Keep the weights that the metric liked best."""
        try:
            beside = self.checkpoints / ".best.safetensors"
            _write_tensors(beside, model)
            beside.replace(self.checkpoints / "best.safetensors")
        except (OSError, SafetensorError) as error:
            raise TokensieveError(f"cannot write the best weights of step {step}: {error}; {self.kept()}") from error

    def load_best(self) -> dict[str, Tensor]:
        """The weights of ``save_best``."""
        return read_weights(self.checkpoints / "best.safetensors")

    def _complete(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))


def random_state() -> dict[str, Any]:
    """The states of this process's random generators, as plain data."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": numpy | {"state": {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}},
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what ``random_state`` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy | {"state": {"key": key, "pos": numpy["state"]["pos"]}})
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _split(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain data of an optimizer's state."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, entries in optimizer["state"].items():
        numbers[name] = {}
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.contiguous()
            elif value is None or isinstance(value, (int, float, bool, str)):
                numbers[name][key] = value
            else:
                raise TokensieveError(
                    f"the optimizer keeps a {type(value).__name__} ({key}), which no checkpoint can hold: "
                    "choose another --opt"
                )
    groups = [
        {key: value.tolist() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in optimizer["param_groups"]
    ]
    return tensors, {"state": numbers, "param_groups": groups}


def _join(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in numbers["state"].items()}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        state[name][key] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in numbers["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # safetensors refuses tensors that share memory
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
