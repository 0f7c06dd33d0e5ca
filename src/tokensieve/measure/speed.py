"""Speed as a ratio: all variants interleaved in one process, so that a slow minute slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOISY = 0.10  # interquartile range over median beyond which a run says little
MOVED = 0.05  # change of the oracle's speed-up from one half of the rounds to the other beyond which they are discarded


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
        return _quartiles(self.seconds)

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
        return statistics.median(b / a for a, b in zip(self.seconds, over.seconds, strict=True))


def _quartiles(values: tuple[float, ...]) -> tuple[float, float]:
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
    on_round: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time every variant on ``x`` (B, C, H, W), in rounds that go through all of them.

    Args:
        variants: name to callable.
        x: the images, on the device to measure.
        rounds: how often each variant is timed; every round starts at another variant.
        warmup: calls of each variant before the first round.
        min_time: a timing repeats the call until it lasts this long, in seconds.
        on_round: called after every timing of a variant.

    Returns:
        Name to ``Timing``.
    """
    names = list(variants)
    repeats: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for name in names:
            for _ in range(warmup):
                single = _time(variants[name], x, 1)
            repeats[name] = max(1, round(min_time / single))
        for number in range(rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(_time(variants[name], x, repeats[name]))
                if on_round is not None:
                    on_round()
    return {name: Timing(tuple(values), x.shape[0]) for name, values in seconds.items()}


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
