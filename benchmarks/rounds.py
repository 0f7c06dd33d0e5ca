"""Variants timed in turn, each round beginning at another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; a round begins at another one each time, and one is for warming up."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(-1, rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.perf_counter()
                variants[name]()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return seconds
