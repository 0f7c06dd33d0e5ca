"""The search behind a plan: predict every setting of the knob, measure the gentlest that is fast enough, correct."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.engine.apply import apply
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.errors import RefusedError, TokensieveError, TokensieveWarning
from tokensieve.families._layout import Layout
from tokensieve.families._locate import family_of
from tokensieve.measure.knob import Knob
from tokensieve.measure.macs import count
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.models.load import share_weights
from tokensieve.plan.latency import Latency, Sample, Stopwatch, Work, fit

TOLERANCE = 0.02  # how far below its target a measured plan may lie
ATTEMPTS = 3  # plans that are measured before the best of them is taken
THINNINGS = (1, 2, 3, 4)  # with fewer sites: each of them, every second, third, fourth


@dataclass(frozen=True)
class Option:
    """One setting of the knob: what it leaves and what that costs.

    Attributes:
        methods: the composition.
        blocks: (tokens in attention, tokens in the MLP) of every block, prefix included.
        acting: how many sites remove something.
        work: what its time depends on.
        macs: of the whole model.
    """

    methods: tuple[Method, ...]
    blocks: tuple[tuple[int, int], ...]
    acting: int
    work: Work
    macs: float


@dataclass(frozen=True)
class Tried:
    """An option that was measured: the speed-up that the curve said, and what the clock said."""

    option: Option
    predicted: float
    measured: float


@dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
        best: the option to take.
        latency: the curve as it was corrected last.
        dense_macs: of the dense model.
    """

    best: Tried
    latency: Latency
    dense_macs: float


class Search:
    """Finds the gentlest setting of ``methods`` that reaches ``target``.

    Args:
        dense: the dense model in evaluation mode.
        watch: times it and what is made of it.
        methods: the composition.
        target: the speed-up to reach; None measures the methods as given.
        multiple: what token counts are rounded up to, or None.
    """

    def __init__(
        self,
        dense: nn.Module,
        watch: Stopwatch,
        methods: tuple[Method, ...],
        target: float | None,
        multiple: int | None,
    ) -> None:
        self.dense, self.watch, self.methods = dense, watch, methods
        self.target, self.multiple = target, multiple
        located = family_of(dense)
        self.layout = located.family.layout(located.owner)
        if self.layout.windowed:
            raise RefusedError(
                "plan works out what a block costs from its tokens alone, and no image attends to itself as a whole in "
                f"blocks {sorted(self.layout.windowed)} of {type(located.owner).__name__}: measure settings with bench"
            )
        self.report = count(dense, watch.x[:1])
        self.length = round(self.report.blocks[0].attended)

    def run(self, fewer_sites: bool) -> Found:
        """Fit the curve, add the method's own cost, then predict, measure and correct until both agree.

        Raises:
            TokensieveError: the target is out of reach.
        """
        options = self.options(fewer_sites)
        latency = self.watch.latency(self.length, self.multiple)
        latency = self.with_site_cost(latency, self.gentlest(options, latency))
        tried: list[Tried] = []
        for _ in range(ATTEMPTS):
            one = self.gentlest(options, latency)
            if any(one is before.option for before in tried):
                break
            predicted = latency.speedup(one.work, one.acting)
            measured = 1 / self.watch.time({"planned": self.reduced(one)})[1]["planned"]
            tried.append(Tried(one, predicted, measured))
            if self.target is None or abs(measured / self.target - 1) <= TOLERANCE:
                break
            latency = latency.corrected(one.work, one.acting, measured)
        return Found(self.best(tried), latency, self.report.total)

    def option(self, composition: tuple[Method, ...]) -> Option:
        """What a composition leaves and costs, from its schedule alone."""
        patches = self.length - self.layout.prefix
        found = counts(schedule(composition, self.layout), self.layout, patches=patches, multiple=self.multiple)
        costs = zip(self.watch.macs, found.blocks, strict=True)
        macs = self.report.rest + sum(block.total(*tokens) for block, tokens in costs)
        return Option(composition, found.blocks, found.acting, self.watch.work(found.blocks), macs)

    def options(self, fewer_sites: bool) -> list[Option]:
        """The composition as it is, or where there is a target every setting of its knob."""
        if self.target is None:
            return [self.option(self.methods)]
        knobs = _variants(self.methods, self.layout, fewer_sites)
        return list(_options(knobs, self.length - self.layout.prefix, self.option))

    def reduced(self, one: Option) -> nn.Module:
        """A copy of the dense model with an option applied."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokensieveWarning)
            return apply(share_weights(self.dense), one.methods, multiple=self.multiple)

    def gentlest(self, options: Sequence[Option], latency: Latency) -> Option:
        """The option of the most MACs that is predicted to reach the target."""

        def speedup(one: Option) -> float:
            return latency.speedup(one.work, one.acting)

        if self.target is None:
            return options[0]
        reaching = [one for one in options if speedup(one) >= self.target]
        if reaching:
            return max(reaching, key=lambda one: one.macs)
        best = max(options, key=speedup)
        doubt = "; the machine was too busy to be sure" if self.watch.noisy else ""
        cost = f"each site of which costs {1000 * latency.site:.2f} ms" if latency.site else "were its choice free"
        raise TokensieveError(
            f"{spell(self.methods)} cannot make this model {self.target:g} times as fast: the most, {cost}, is "
            f"{speedup(best):.2f} ({spell(best.methods)}); the dense model takes {1000 * latency.dense:.1f} ms a "
            f"batch, of which {1000 * latency.fixed:.1f} ms do not depend on the tokens: ask for less, or take "
            f"larger batches{doubt}"
        )

    def with_site_cost(self, latency: Latency, one: Option) -> Latency:
        """The curve with one point more, where the schedule will be, and with what the method costs at a site."""
        reduced = self.reduced(one)  # says first what this model refuses
        if not one.acting:
            return latency
        free = f"oracle of {spell(one.methods)}"
        _, shares = self.watch.time({"method": reduced, free: self.watch.counting(one.blocks)})
        site = max(0.0, shares["method"] - shares[free]) * latency.dense / one.acting
        latency = fit([*latency.samples, Sample(free, one.work, shares[free])], latency.dense, site)
        return latency.corrected(one.work, one.acting, 1 / shares["method"])

    def best(self, tried: Sequence[Tried]) -> Tried:
        """Of what was measured the gentlest that reached the target, else the fastest."""
        least = None if self.target is None else self.target * (1 - TOLERANCE)
        reached = [one for one in tried if least is None or one.measured >= least]
        if reached:
            return max(reached, key=lambda one: one.option.macs)
        return max(tried, key=lambda one: one.measured)


def _variants(methods: tuple[Method, ...], layout: Layout, fewer_sites: bool) -> Iterator[Knob]:
    """The composition, and with ``fewer_sites`` the same at some of its sites only."""
    knob = Knob.of(methods)
    yield knob
    turned = knob.methods[knob.place]
    if not fewer_sites or "sites" not in turned.option_types():
        return
    own = turned.blocks(layout.depth)
    for every in THINNINGS[1:]:
        sites = own[(every - 1) // 2 :: every]
        try:
            thinned: Any = dataclasses.replace(turned, sites=sites)  # type: ignore[call-arg]
            follows = thinned.blocks(layout.depth) == sites
        except TokensieveError:
            continue
        if follows and 0 < len(sites) < len(own):  # the sites of some methods are not the blocks they act at
            yield dataclasses.replace(knob, methods=_replaced(knob.methods, knob.place, thinned))


def _replaced(methods: tuple[Method, ...], place: int, method: Method) -> tuple[Method, ...]:
    return (*methods[:place], method, *methods[place + 1 :])


def _options(knobs: Iterator[Knob], patches: int, option: Callable[[tuple[Method, ...]], Option]) -> Iterator[Option]:
    """Every setting of the knobs that leaves other token counts than the ones before it, gentlest first."""
    for knob in knobs:
        seen: set[tuple[tuple[int, int], ...]] = set()
        for value in knob.settings(patches):
            try:
                one = option(knob.turn(value))
            except TokensieveError:  # a setting the method does not take, or one that removes more than there is
                continue
            if one.blocks not in seen:
                seen.add(one.blocks)
                yield one
