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
from tokensieve.train.loop import Told
from tokensieve.train.options import TrainOptions
from tokensieve.train.run import train


def child(options: dict[str, object], tell: int, after: int | None, die_writing: int | None) -> None:
    """Train to the end, or die in the middle of writing the ``die_writing``-th file of a checkpoint.

    A byte goes to the pipe ``tell`` when ``after`` updates are done.
    """
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
    done = 0

    def count(told: Told) -> None:
        nonlocal done
        done += 1
        if done == after:
            os.write(tell, b".")

    train(TrainOptions(**options), on_step=count)  # type: ignore[arg-type]


def run(
    options: dict[str, object], after: int | None = None, delay: float = 0.0, die_writing: int | None = None
) -> int:
    """Wait status of one child, killed ``delay`` seconds behind its ``after``-th update."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        try:
            child(options, tell, after, die_writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(tell)
    if os.read(told, 1):  # nothing comes from one that ends before
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    os.close(told)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    options, whole, broken, kills, seed = json.loads(sys.argv[1])
    options["data"] = tuple(options["data"])
    rng = random.Random(seed)
    began = time.monotonic()
    assert run(options | {"output": whole}) == 0, "the run that nobody kills must end well"
    update = (time.monotonic() - began) / options["steps"]
    killed = []
    again = options | {"output": broken, "resume": "auto"}
    for number in range(kills):
        if number % 3 == 1:
            status = run(again, die_writing=rng.randint(1, 4))
        else:
            status = run(again, after=rng.randint(1, 6), delay=rng.uniform(0, update))
        killed.append(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        assert killed[-1] or status == 0
    assert run(again) == 0, "the last run must end well"
    steps = [path.name for path in (Path(broken) / "checkpoints").iterdir()]
    print(json.dumps({"killed": killed, "left": steps}))


if __name__ == "__main__":
    main()
