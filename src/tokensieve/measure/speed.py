"""Speed as a ratio: all variants interleaved in one process, so that a slow minute slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOISY = 0.10  # interquartile range over median beyond which a run says little
WARM_UP = 4  # the warm-up may take one of so many parts of a budget
MOVED = 0.05  # change of the oracle's speed-up from one half of the rounds to the other beyond which they are discarded


class Budget:
    """Seconds that something may take, counted from now.

    Args:
        seconds: how many; None for as long as it takes.
        clock: seconds that only grow.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self.start = clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Seconds that are left; none are left below 0."""
        return float("inf") if self.seconds is None else self.seconds - self.spent

    def part(self, parts: int) -> Budget:
        """One of ``parts`` equal parts of what is left."""
        return Budget(None if self.seconds is None else max(self.left, 0.0) / parts, self.clock)


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one variant, one value a round.

    Attributes:
        seconds: rounds in order.
        batch: images per call.
    """

    seconds: tuple[float, ...]
    batch: int

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds per call."""
        return quartiles(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Images per second at the median."""
        return self.batch / self.median

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def speedup(self, over: Timing) -> float:
        """How many times faster than ``over``: the median of the ratios round by round, which a drift cannot move."""
        return statistics.median(self.ratios(over))

    def ratios(self, over: Timing) -> list[float]:
        """Round by round, how many times faster than ``over``."""
        return [b / a for a, b in zip(self.seconds, over.seconds, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; the value itself where there is one."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(
    variants: Mapping[str, Callable[[Tensor], Any]],
    x: Tensor,
    *,
    rounds: int = 10,
    warmup: int = 3,
    min_time: float = 0.05,
    on_warm: Callable[[], None] | None = None,
    on_round: Callable[[], None] | None = None,
    budget: Budget | None = None,
) -> dict[str, Timing]:
    """Time every variant on ``x`` (B, C, H, W), in rounds that go through all of them.

    No round begins that ``budget`` has no time for, but the first.

    Args:
        variants: name to callable.
        x: the images, on the device to measure.
        rounds: how often each variant is timed; every round starts at another variant.
        warmup: calls of each variant before the first round.
        min_time: a timing repeats the call until it lasts this long, in seconds.
        on_warm: called after the warm-up of every variant.
        on_round: called after every timing of a variant.
        budget: seconds that warm-up and rounds may take together; a quarter of what is left goes to the warm-up, in
            which every variant is called once whatever it takes.

    Returns:
        Name to ``Timing``, all of as many rounds.
    """
    budget = Budget() if budget is None else budget
    names = list(variants)
    with torch.inference_mode():
        repeats = _warm_up(variants, x, warmup, min_time, on_warm, budget.part(WARM_UP))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        longest = 0.0
        for number in range(rounds):
            if number and budget.left < longest:
                break
            before = budget.spent
            start = number % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(_time(variants[name], x, repeats[name]))
                if on_round is not None:
                    on_round()
            longest = max(longest, budget.spent - before)
    return {name: Timing(tuple(values), x.shape[0]) for name, values in seconds.items()}


def _warm_up(
    variants: Mapping[str, Callable[[Tensor], Any]],
    x: Tensor,
    calls: int,
    min_time: float,
    on_warm: Callable[[], None] | None,
    budget: Budget,
) -> dict[str, int]:
    """Call every variant up to ``calls`` times; how many calls of each last ``min_time``."""
    repeats = {}
    for name, run in variants.items():
        single = _time(run, x, 1)
        for _ in range(calls - 1):
            if budget.left < single:
                break
            single = _time(run, x, 1)
        repeats[name] = max(1, round(min_time / single))
        if on_warm is not None:
            on_warm()
    return repeats


def drift(oracle: Timing, dense: Timing) -> float:
    """How far the oracle's speed-up in one half of the rounds lies from that in the other, as a share.

    An oracle computes the same thing in every round, so that nothing but the machine can move it. 0 below 4 rounds.
    """
    half = len(oracle.seconds) // 2
    if half < 2:
        return 0.0
    early = Timing(oracle.seconds[:half], oracle.batch).speedup(Timing(dense.seconds[:half], dense.batch))
    late = Timing(oracle.seconds[-half:], oracle.batch).speedup(Timing(dense.seconds[-half:], dense.batch))
    return max(early, late) / min(early, late) - 1


def moved(oracle: Timing, dense: Timing) -> bool:
    """Whether the oracle moved against the dense model while they were timed, by more than 5 %."""
    return drift(oracle, dense) > MOVED


def noisy(timing: Timing) -> bool:
    """Whether the run that gave ``timing`` was disturbed: its rounds lie more than 10 % apart."""
    return timing.spread > NOISY


def _time(run: Callable[[Tensor], Any], x: Tensor, repeats: int) -> float:
    _synchronise(x)
    start = time.perf_counter()
    for _ in range(repeats):
        run(x)
    _synchronise(x)
    return (time.perf_counter() - start) / repeats


def _synchronise(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
