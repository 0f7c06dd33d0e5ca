"""Train in a forked child, kill it again and again, and let it go on; run as a script by test_killed.py.

A script of its own, so that what is forked has used no thread yet; and forking saves importing torch every time.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from tokensieve.train import state
from tokensieve.train.arguments import TrainArguments
from tokensieve.train.run import train


def child(options: dict[str, object], die_writing: int | None) -> None:
    """Train to the end, or die in the middle of writing the ``die_writing``-th file of a checkpoint."""
    torch.set_num_threads(1)
    if die_writing is not None:
        written = 0
        write = state._write_tensors

        def dies(path: Path, tensors: dict[str, torch.Tensor]) -> None:
            nonlocal written
            write(path, tensors)
            written += 1
            if written == die_writing:
                with path.open("rb+") as file:
                    file.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        state._write_tensors = dies
    train(TrainArguments(**options))  # type: ignore[arg-type]


def run(options: dict[str, object], after: float | None = None, die_writing: int | None = None) -> tuple[int, float]:
    """Wait status and seconds of one child, killed ``after`` seconds."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            child(options, die_writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while after is None or time.monotonic() - began < after:
        done, status = os.waitpid(pid, 0 if after is None else os.WNOHANG)
        if done:
            return status, time.monotonic() - began
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], time.monotonic() - began


def main() -> None:
    options, whole, broken, kills, seed = json.loads(sys.argv[1])
    options["data"] = tuple(options["data"])
    rng = random.Random(seed)
    status, seconds = run(options | {"output": whole})
    assert status == 0, "the run that nobody kills must end well"
    killed = []
    again = options | {"output": broken, "resume": "auto"}
    for number in range(kills):
        if number % 3 == 1:
            status, _ = run(again, die_writing=rng.randint(1, 4))
        else:
            status, _ = run(again, after=rng.uniform(0.1, 0.8) * seconds)
        killed.append(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        assert killed[-1] or status == 0
    status, _ = run(again)
    assert status == 0, "the last run must end well"
    steps = [path.name for path in (Path(broken) / "checkpoints").iterdir()]
    print(json.dumps({"killed": killed, "seconds": seconds, "left": steps}))


if __name__ == "__main__":
    main()
