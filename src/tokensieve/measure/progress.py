"""What is told about a run while it goes on: nothing, or a line every few seconds where no bar can move."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

SECONDS = 5.0  # between two lines


class Progress(Protocol):
    """What is told about the run while it goes on."""

    def start(self, what: str, total: int | None) -> None:
        """A phase begins that has ``total`` steps."""

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""


class Silent:
    """Tells nothing."""

    def start(self, what: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""


class Lines:
    """Tells the phase and its steps in a line every few seconds, and nothing in a run that is shorter.

    Args:
        write: takes a line.
        every: seconds between two lines.
        clock: seconds that only grow.
    """

    def __init__(
        self, write: Callable[[str], None], every: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._every, self._clock = write, every, clock
        self._what, self._done = "", 0
        self._total: int | None = None
        self._last = clock()

    def start(self, what: str, total: int | None) -> None:
        """A phase begins."""
        self._what, self._total, self._done = what, total, 0
        self._tell()

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""
        self._done += steps
        self._tell()

    def _tell(self) -> None:
        now = self._clock()
        if now - self._last < self._every:
            return
        self._last = now
        of = "" if self._total is None else f" of {self._total}"
        self._write(f"{self._what}: {self._done}{of}" if self._done else f"{self._what} …")
