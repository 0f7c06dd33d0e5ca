"""Timing variants beside the dense model and their oracles, all interleaved; a set whose oracle moved is discarded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tokensieve.measure import memory, speed
from tokensieve.measure.macs import MacReport
from tokensieve.measure.oracle import oracle
from tokensieve.measure.progress import Progress, Silent
from tokensieve.measure.results import DENSE, Speed
from tokensieve.measure.speed import Budget, Timing
from tokensieve.models.runtime import Runtime

ATTEMPTS = 3  # sets of rounds before the steadiest of them is kept and marked noisy
FEW = 4  # rounds below which neither their spread nor a moving oracle can be judged


@dataclass
class Variant:
    """A reduced model to measure.

    Attributes:
        name: the spec of its methods.
        model: has the weights of the dense model.
        report: its MACs, and where its tokens went.
    """

    name: str
    model: nn.Module
    report: MacReport


@dataclass(frozen=True)
class Timings:
    """One set of rounds.

    Attributes:
        variants: name to timing, the dense model under ``DENSE``.
        oracles: name to timing of the oracle; the dense model has none.
        peaks: name to bytes at the peak of one eager forward pass.
        discarded: sets of rounds that were measured before and thrown away because an oracle moved.
        cut: whether a budget ended the rounds before there were enough to judge them by.
    """

    variants: Mapping[str, Timing]
    oracles: Mapping[str, Timing]
    peaks: Mapping[str, int]
    discarded: int
    cut: bool = False

    @property
    def dense(self) -> Timing:
        """The dense model's."""
        return self.variants[DENSE]

    def speed(self, name: str, promised: float) -> Speed:
        """The figures of one variant whose MACs promise the factor ``promised``."""
        timing, free = self.variants[name], self.oracles.get(name)
        own = {"variant": timing, DENSE: self.dense} | ({} if free is None else {"oracle": free})
        noisy = self.cut or disturbed(own, [name for name in own if name == "oracle"])
        return replace(
            speed_of(timing, self.dense, promised, self.peaks[name], noisy),
            O=None if free is None else free.speedup(self.dense),
            S_over_O=None if free is None else timing.speedup(free),
            discarded=self.discarded,
        )


def speed_of(timing: Timing, dense: Timing, promised: float, peak: int, noisy: bool) -> Speed:
    """The figures of one variant, without an oracle.

    Args:
        timing, dense: of the variant and of the dense model, round by round.
        promised: the factor that its MACs promise.
        peak: bytes.
        noisy: whether the rounds say little.
    """
    gain = timing.speedup(dense)
    fast, slow = timing.quartiles
    return Speed(
        batch=timing.batch,
        images_per_second=timing.images_per_second,
        low=timing.batch / slow,
        high=timing.batch / fast,
        S=gain,
        O=None,
        S_over_F=gain / promised,
        S_over_O=None,
        peak_memory=peak,
        noisy=noisy,
        rounds=len(timing.seconds),
    )


def time_variants(
    dense: nn.Module,
    variants: Sequence[Variant],
    x: Tensor,
    *,
    runtime: Runtime,
    rounds: int = 10,
    warmup: int = 3,
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> Timings:
    """Time the dense model, every variant and its oracle on ``x``, interleaved.

    A set of rounds in which an oracle moved is thrown away and measured again; after three of them, or when the budget
    has no time for another, the one whose oracles moved least is kept, and says so.

    Args:
        dense: the dense model, placed where ``runtime`` says.
        variants: the reduced models, placed there too; one of the name ``DENSE`` is the dense model and has no oracle,
            nor has one whose report tells no blocks apart.
        x: (B, C, H, W), the images.
        runtime: device, precision and engine.
        rounds: timings of each model.
        warmup: calls of each model before the first round.
        progress: is told how far it got.
        budget: seconds for the timing; default as long as it takes. One round is always measured.
    """
    progress = Silent() if progress is None else progress
    budget = Budget() if budget is None else budget
    x = runtime.send(x)
    models = {DENSE: dense} | {variant.name: variant.model for variant in variants}
    # Every variant has an oracle beside it: the same token counts with a selection that costs nothing.
    free = {
        variant.name: oracle(dense, variant.report)
        for variant in variants
        if variant.name != DENSE and variant.report.blocks
    }
    runs: dict[str, Callable[[Tensor], Any]] = {name: runtime.callable(model) for name, model in models.items()}
    runs |= {_free(name): runtime.callable(model) for name, model in free.items()}

    def one_set(number: int) -> dict[str, Timing]:
        again = ", again: an oracle moved" if number else ""
        progress.start(f"timing {len(runs)} models at batch {len(x)}{again}", (rounds + 1) * len(runs))
        calls = 1 if number else warmup
        told = progress.advance
        return speed.measure(runs, x, rounds=rounds, warmup=calls, on_warm=told, on_round=told, budget=budget)

    # All run in turn within each round; a set in which an oracle moved is measured again.
    timed, discarded = steadiest(one_set, DENSE, [_free(name) for name in free], budget)
    # Memory is measured apart and eagerly, so that it does not disturb the clock.
    peaks = {name: memory.peak(runtime.callable(model, eager=True), x) for name, model in models.items()}
    variants_timed, oracles = {name: timed[name] for name in models}, {name: timed[_free(name)] for name in free}
    measured = len(timed[DENSE].seconds)
    return Timings(variants_timed, oracles, peaks, discarded, cut=measured < min(rounds, FEW))


def steadiest(
    one_set: Callable[[int], Mapping[str, Timing]], dense: str, oracles: Collection[str], budget: Budget | None = None
) -> tuple[Mapping[str, Timing], int]:
    """The first set of rounds in which no oracle moved, or of three the one whose oracles moved least.

    Args:
        one_set: measures set number 0, 1, …
        dense, oracles: which of its timings are the dense model's and the oracles'.
        budget: no further set begins that it has no time for; default as long as it takes.

    Returns:
        The set, and how many were measured and discarded besides.
    """

    def worst(timed: Mapping[str, Timing]) -> float:
        moved = [timed[name] for name in oracles if speed.moved(timed[name], timed[dense])]
        return max((speed.drift(oracle, timed[dense]) for oracle in moved), default=0.0)

    budget = Budget() if budget is None else budget
    sets: list[Mapping[str, Timing]] = []
    while len(sets) < ATTEMPTS:
        before = budget.spent
        sets.append(one_set(len(sets)))
        if not worst(sets[-1]) or budget.left < budget.spent - before:
            break
    # Of equals the last: it is the furthest from whatever disturbed the first.
    return min(reversed(sets), key=worst), len(sets) - 1


def disturbed(timed: Mapping[str, Timing], oracles: Collection[str], dense: str = DENSE) -> bool:
    """Whether the rounds of any of ``timed`` lie far apart, or an oracle moved: then the figures say little."""
    return any(map(speed.noisy, timed.values())) or any(speed.moved(timed[name], timed[dense]) for name in oracles)


def _free(name: str) -> str:
    return f"{name} oracle"  # a spec has no spaces
