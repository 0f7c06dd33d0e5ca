"""How long a model takes on given token counts: a few lengths measured once, and a curve through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.families._locate import family_of
from tokensieve.measure import speed
from tokensieve.measure.macs import BlockCount, MacReport
from tokensieve.measure.oracle import oracle
from tokensieve.measure.speed import Timing

SHARES = (0.8, 0.6, 0.45, 0.3, 0.15)  # of the dense length: the lengths that are measured beside it
ATTEMPTS = 3  # sets of rounds before the steadiest of them is kept
Blocks = Sequence[tuple[float, float]]
Timer = Callable[[Mapping[str, Callable[[Tensor], Any]], Tensor], Mapping[str, Timing]]


@dataclass(frozen=True)
class Work:
    """What the time of a schedule depends on.

    Attributes:
        tokens: tokens that all blocks run on, added up; those in attention and those in the MLP count by the MACs of
            either half.
        squares: the same for tokens in attention, squared.
    """

    tokens: float
    squares: float


@dataclass(frozen=True)
class Sample:
    """One measured point.

    Attributes:
        name: what ran.
        work: what it ran on.
        share: its time over that of the dense model.
    """

    name: str
    work: Work
    share: float


@dataclass(frozen=True)
class Latency:
    """Seconds of a batch: fixed + linear · Σ n + quadratic · Σ n² over the blocks, + site · sites that act.

    For one block at length n of a model of depth D this is t(n) = fixed / D + linear · n + quadratic · n².

    Attributes:
        fixed: what does not depend on the tokens: patch embedding, head, dispatch.
        linear: seconds per token and block.
        quadratic: seconds per token squared and block.
        site: what the method itself costs at each of its sites.
        dense: seconds of the dense model.
        samples: what the curve goes through.
        correction: what the clock said of the last schedule over what the curve said; holds for schedules like it.
    """

    fixed: float
    linear: float
    quadratic: float
    site: float
    dense: float
    samples: tuple[Sample, ...]
    correction: float = 1.0

    def curve(self, work: Work) -> float:
        """Seconds of one batch with a selection that costs nothing."""
        return self.fixed + self.linear * work.tokens + self.quadratic * work.squares

    def speedup(self, work: Work, acting: int) -> float:
        """Predicted speed-up over the dense model of a schedule with ``acting`` sites."""
        return self.dense / ((self.curve(work) + self.site * acting) * self.correction)

    def corrected(self, work: Work, acting: int, measured: float) -> Latency:
        """The same curve, moved so that it predicts the speed-up ``measured`` for this schedule."""
        return replace(self, correction=self.correction * self.speedup(work, acting) / measured)

    @property
    def error(self) -> float:
        """The largest distance of a sample from the curve, as a share of the sample."""
        return max(abs(self.curve(s.work) / (s.share * self.dense) - 1) for s in self.samples)


def fit(samples: Sequence[Sample], dense: float, site: float = 0.0) -> Latency:
    """Least squares of the relative errors; a coefficient that comes out negative is noise and becomes zero.

    Args:
        samples: at least one; the dense model among them has the share 1.
        dense: seconds of the dense model.
        site: taken over.
    """
    rows = torch.tensor([(1.0, s.work.tokens, s.work.squares) for s in samples], dtype=torch.float64)
    shares = torch.tensor([s.share for s in samples], dtype=torch.float64)
    scale = rows.amax(dim=0)
    weighted = rows / scale / shares.unsqueeze(1)
    used = [0, 1, 2]
    while True:
        # The pseudo-inverse also answers where there are fewer samples than coefficients.
        found = torch.linalg.pinv(weighted[:, used]) @ torch.ones_like(shares)
        lowest = int(found.argmin())
        if found[lowest] >= 0 or len(used) == 1:
            break
        del used[lowest]
    coefficients = torch.zeros(3, dtype=torch.float64)
    coefficients[used] = found
    fixed, linear, quadratic = (coefficients / scale * dense).tolist()
    return Latency(fixed, linear, quadratic, site, dense, tuple(samples))


def clock(rounds: int) -> Timer:
    """A timer for which a set of six variants takes ``rounds`` rounds, and a smaller one more in the same time."""

    def timer(variants: Mapping[str, Callable[[Tensor], Any]], x: Tensor) -> Mapping[str, Timing]:
        return speed.measure(variants, x, rounds=max(rounds, -(-6 * rounds // len(variants))))

    return timer


def unsteadiness(timed: Mapping[str, Timing]) -> float:
    """How far the rounds lie apart: of the times over those of "dense", the widest interquartile range over median."""
    return max(
        Timing(tuple(a / b for a, b in zip(timing.seconds, timed["dense"].seconds, strict=True)), timing.batch).spread
        for timing in timed.values()
    )


class Stopwatch:
    """Measures one dense model on token counts, always beside the dense model itself.

    A set of rounds that lie more than 10 % apart is measured again; of three such sets the steadiest is kept and
    ``noisy`` is set.

    Args:
        model: the dense model, in evaluation mode.
        x: (B, C, H, W) images, on the device.
        timer: names and callables to their timings.
        wrap: a model to what is called in its place.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, timer: Timer, wrap: Callable[[nn.Module], Callable[[Tensor], Any]]
    ) -> None:
        self.model, self.x, self.timer, self.wrap = model, x, timer, wrap
        located = family_of(model)
        self.macs = [located.family.macs(block) for block in located.family.blocks(located.owner)]
        self.prefix = located.family.layout(located.owner).prefix
        self.dense = wrap(model)
        self.noisy = False

    def time(self, variants: Mapping[str, nn.Module]) -> tuple[float, dict[str, float]]:
        """Seconds of the dense model, and the time of every variant as a share of it."""
        runs = {"dense": self.dense} | {name: self.wrap(model) for name, model in variants.items()}
        sets: list[Mapping[str, Timing]] = []
        while len(sets) < ATTEMPTS and all(unsteadiness(earlier) > speed.NOISY for earlier in sets):
            sets.append(self.timer(runs, self.x))
        timed = min(sets, key=unsteadiness)
        self.noisy = self.noisy or unsteadiness(timed) > speed.NOISY
        dense = timed["dense"]
        return dense.median, {name: 1 / timed[name].speedup(dense) for name in variants}

    def counting(self, blocks: Blocks) -> nn.Module:
        """The dense model on these token counts, with a selection that costs nothing."""
        counts = tuple(BlockCount(a, m, b.total(a, m)) for b, (a, m) in zip(self.macs, blocks, strict=True))
        return oracle(self.model, MacReport(counts, 0.0))

    def work(self, blocks: Blocks) -> Work:
        """What the time on these token counts depends on."""
        linear = sum(block.attention_linear + block.mlp_linear for block in self.macs) / len(self.macs)
        width = sum(block.attention_width for block in self.macs) / len(self.macs)
        pairs = list(zip(self.macs, blocks, strict=True))
        return Work(
            sum(b.attention_linear * a + b.mlp_linear * m for b, (a, m) in pairs) / linear,
            sum(b.attention_width * a * a for b, (a, _) in pairs) / width,
        )

    def lengths(self, dense: int, multiple: int | None) -> list[int]:
        """A handful of lengths below the dense one, prefix included, in multiples where the schedule will be."""
        step = multiple or 1
        rounded = {max(self.prefix + 1, round(share * dense / step) * step) for share in SHARES}
        return sorted((length for length in rounded if length < dense), reverse=True)

    def latency(self, dense: int, multiple: int | None = None) -> Latency:
        """The curve for this model, batch, precision and device; ``dense`` is the length of the dense model."""
        lengths = {f"{n} tokens": [(n, n)] * len(self.macs) for n in self.lengths(dense, multiple)}
        seconds, shares = self.time({name: self.counting(blocks) for name, blocks in lengths.items()})
        whole = Sample(f"{dense} tokens", self.work([(dense, dense)] * len(self.macs)), 1.0)
        below = [Sample(name, self.work(blocks), shares[name]) for name, blocks in lengths.items()]
        return fit([whole, *below], seconds)
