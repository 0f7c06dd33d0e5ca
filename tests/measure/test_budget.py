"""Seconds that timing may take, on a clock that the timed calls push forward, and what is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokensieve as ts
from tokensieve.demo.run import cut_short, digits, settle_threads
from tokensieve.measure import speed, timing
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import count
from tokensieve.measure.progress import Lines
from tokensieve.measure.results import DENSE, Results, Row, Speed
from tokensieve.measure.speed import Budget, Timing
from tokensieve.measure.timing import Timings, Variant, steadiest, time_variants
from tokensieve.models.runtime import Runtime

X = torch.zeros(2, 3, 4, 4)


class Clock:
    """Stands still but for what is slept."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleeper(self, seconds: float) -> Callable[[Tensor], None]:
        """A call that takes so long."""

        def call(x: Tensor) -> None:
            self.now += seconds

        return call


def timed(seconds: float | None, *, rounds: int = 7, warmup: int = 3) -> tuple[int, float]:
    """Rounds that were measured of two calls of one second, and what it took in all."""
    clock = Clock()
    runs = {"dense": clock.sleeper(1), "reduced": clock.sleeper(1)}
    budget = Budget(seconds, clock)
    found = speed.measure(runs, X, rounds=rounds, warmup=warmup, min_time=0, budget=budget)
    (done,) = {len(one.seconds) for one in found.values()}
    return done, clock.now - 100


@pytest.mark.parametrize(
    ("seconds", "rounds", "took"),
    [
        (None, 7, 20),  # two calls, three times to warm up and seven times timed
        (1000, 7, 20),
        (14, 5, 14),  # three warm-up calls and one that the quarter has no time for are four
        (0, 1, 4),  # every call once to warm up, and one round
    ],
)
def test_rounds_end_when_the_budget_is_spent(seconds: float | None, rounds: int, took: float) -> None:
    done, spent = timed(seconds)
    assert (done, spent) == (rounds, took)


def test_a_budget_is_divided_among_what_is_left() -> None:
    clock = Clock()
    budget = Budget(90, clock)
    first = budget.part(2)
    clock.now += 60
    assert (first.seconds, first.left, budget.left) == (45, -15, 30)
    assert budget.part(1).seconds == 30
    clock.now += 60
    assert budget.part(1).seconds == 0
    assert Budget(None, clock).part(3).left == float("inf")


@pytest.mark.parametrize(("seconds", "sets"), [(None, 3), (19, 1), (20, 2), (30, 3)])
def test_no_set_begins_that_there_is_no_time_for(seconds: float | None, sets: int) -> None:
    clock = Clock()
    moved = {"dense": Timing((2.0,) * 4, 1), "free": Timing((1.0, 1.0, 1.5, 1.5), 1)}

    def one_set(number: int) -> dict[str, Timing]:
        clock.now += 10
        return moved

    assert steadiest(one_set, "dense", ["free"], Budget(seconds, clock))[1] == sets - 1


@pytest.mark.parametrize(("done", "asked", "noisy"), [(3, 7, True), (4, 7, False), (2, 2, False)])
def test_rounds_that_are_too_few_to_judge_are_marked_as_noisy(
    monkeypatch: pytest.MonkeyPatch, done: int, asked: int, noisy: bool
) -> None:
    def measure(runs: Any, x: Tensor, **_: Any) -> dict[str, Timing]:
        return {name: Timing((1.0,) * done, len(x)) for name in runs}

    monkeypatch.setattr(timing.speed, "measure", measure)
    dense, x = timm.create_model("test_vit").eval(), torch.randn(1, 3, 160, 160)
    reduced = reduce(dense, ts.parse("tome:r=4"))
    variants = [Variant(DENSE, dense, count(dense, x)), Variant("tome:r=4", reduced, count(reduced, x))]
    figures = time_variants(dense, variants, x, runtime=Runtime(), rounds=asked).speed("tome:r=4", 1.0)
    assert (figures.noisy, figures.rounds) == (noisy, done)


def test_the_demo_says_for_which_batch_size_the_time_was_too_short() -> None:
    timings = Timings({DENSE: Timing((1.0, 1.0), 16)}, {}, {DENSE: 1}, 0, cut=True)
    short, whole = timings.speed(DENSE, 1.0), Timings({DENSE: Timing((1.0,) * 7, 1)}, {}, {DENSE: 1}, 0)
    rows = [Row(DENSE, 1.0, 1.0, speed=[whole.speed(DENSE, 1.0), short])]
    (line,) = cut_short(Results(settings={}, rows=rows), 7)
    assert line.startswith("at batch 16 there was time for 2 of 7 rounds: ")
    assert cut_short(Results(settings={}, rows=[Row(DENSE, 1.0, 1.0, speed=[before_rounds_were_told()])]), 7) == []


@pytest.mark.parametrize(("several", "one", "left"), [(1.0, 1.5, 3), (2.0, 1.5, 1)])
def test_the_demo_goes_on_with_one_thread_where_several_are_no_faster(
    monkeypatch: pytest.MonkeyPatch, several: float, one: float, left: int
) -> None:
    chosen = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)

    def measure(runs: Any, x: Tensor, **_: Any) -> dict[str, Timing]:
        return {"dense": Timing((several if chosen[-1] == 3 else one,), 1)}

    monkeypatch.setattr(speed, "measure", measure)
    said = settle_threads(digits(1))
    assert chosen[-1] == left and (said is None) == (left == 3)


def before_rounds_were_told() -> Speed:
    """A figure of a file that does not say how many rounds it has."""
    return Speed(16, 1.0, 1.0, 1.0, 1.0, None, 1.0, None, 1, False)


def test_a_line_is_told_every_few_seconds_and_none_in_a_short_run() -> None:
    clock, lines = Clock(), list[str]()
    told = Lines(lines.append, 5, clock)
    told.start("counting", 3)
    for _ in range(3):
        clock.now += 2
        told.advance()
    assert lines == ["counting: 3 of 3"]
    clock.now += 5
    told.start("timing", None)
    clock.now += 4
    told.advance(16)
    clock.now += 1
    told.advance(16)
    assert lines[1:] == ["timing …", "timing: 32"]
