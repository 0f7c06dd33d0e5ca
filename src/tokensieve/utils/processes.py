"""The processes that ``accelerate launch`` or torchrun starts together: which one speaks, and how work is divided."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO, TypeVar

from tokensieve.errors import TokensieveError

T = TypeVar("T")
STARTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # what a launcher sets; one process alone has the defaults
LIMIT = timedelta(days=1)  # for which processes wait for each other
PATIENCE = 10.0  # seconds in which the process that speaks says why all of them end


def leave_interrupts_to_the_parent(worker: object = None) -> None:
    """Ctrl-C reaches every process of a terminal; a reader that it kills would look like a crash to the one that asks.

    What workers of a data loader call first; which one it is does not matter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Processes:
    """The processes of one command, of which this is one.

    Attributes:
        index: number of this process; 0 is the main one, which alone prints and writes.
        count: how many there are.
        local: number of this process on its machine.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.index == 0

    def device(self, device: str) -> str:
        """The device of this process where ``device`` was asked for: every process of a machine has its own GPU."""
        return f"{device}:{self.local}" if device == "cuda" and self.count > 1 else device

    def gather(self, value: T) -> list[T]:
        """What every process has, in their order, on every process. All must call this."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        gathered: list[T] = gather_object([value])
        return gathered

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the main process, on every process. All must call this."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

        box: list[Any] = [make() if self.main else None]
        broadcast_object_list(box, from_process=0)
        value: T = box[0]
        return value

    def leave(self) -> None:
        """End the connection: what follows, each process does alone."""
        if self.count > 1:
            from accelerate import PartialState  # type: ignore[import-untyped]

            PartialState().destroy_process_group()


def launched() -> Processes:
    """What the launcher says of this process, which is alone where there is none."""
    index, count, local = (int(os.environ.get(name, start)) for name, start in STARTS.items())
    return Processes(index, count, local)


def join(device: str) -> Processes:
    """Connect the processes that were launched together, by way of accelerate; nothing happens where one is alone.

    Args:
        device: what they compute on: over gloo on the CPU, over NCCL on CUDA.

    Raises:
        TokensieveError: accelerate is not installed.
    """
    processes = launched()
    if processes.count > 1:
        try:
            from accelerate import PartialState  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise TokensieveError(
                f"{processes.count} processes were launched and cannot work together without accelerate: "
                "pip install 'tokensieve[train]', or start one process"
            ) from error
        PartialState(cpu=not device.startswith("cuda"), timeout=LIMIT)
    return processes


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the main process alone be heard; a failing process waits until that one has said why and all are ended.

    A launcher ends every process as soon as one ends with an error, the one that is about to speak among them.
    """
    if launched().main:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except SystemExit as end:
            if end.code:
                time.sleep(PATIENCE)
            raise


def spokesman() -> TextIO | None:
    """Where a process that fails says why: standard error, or None where another one has spoken.

    Of connected processes the first to ask speaks: the error may be its own, and the others only lost it.
    """
    if launched().count == 1:
        return sys.stderr
    import torch.distributed as dist  # a process that is alone need not wait for it

    if not (dist.is_available() and dist.is_initialized()):
        return sys.stderr
    store = dist.distributed_c10d._get_default_store()
    return sys.__stderr__ if store.add("tokensieve: failed", 1) == 1 else None
