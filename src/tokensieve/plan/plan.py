"""The gentlest schedule that is as fast as asked for, on this device, at this batch size."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tokensieve.engine.apply import apply, is_applied, resolve
from tokensieve.engine.counts import counts
from tokensieve.engine.probe import probe_input
from tokensieve.engine.schedule import schedule
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.families._layout import Layout
from tokensieve.families._locate import family_of
from tokensieve.measure import speed
from tokensieve.measure.knob import Knob
from tokensieve.measure.macs import count
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.models.load import share_weights
from tokensieve.plan.latency import Latency, Sample, Stopwatch, Timer, Work, clock, fit

TOLERANCE = 0.02  # how far below its target a measured plan may lie
ATTEMPTS = 3  # plans that are measured before the best of them is taken
THINNINGS = (1, 2, 3, 4)  # with fewer sites: each of them, every second, third, fourth


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """A schedule for one model, batch size, precision and device.

    Attributes:
        methods: the composition, its knob set.
        multiple: what token counts are rounded to, or None.
        target: the speed-up that was asked for, or None.
        predicted: the speed-up by the latency model, before this schedule was run.
        measured: the speed-up over the dense model, interleaved with it.
        promised: F, dense MACs over the schedule's.
        blocks: (tokens in attention, tokens in the MLP) of every block, prefix included.
        acting: how many sites remove something.
        latency: the latency model.
        batch_size, dtype, device: what it holds for.
        noisy: whether the machine was too busy to say: rounds lay more than 10 % apart, three times in a row.
    """

    methods: tuple[Method, ...]
    multiple: int | None
    target: float | None
    predicted: float
    measured: float
    promised: float
    blocks: tuple[tuple[int, int], ...]
    acting: int
    latency: Latency
    batch_size: int
    dtype: str
    device: str
    noisy: bool

    @property
    def spec(self) -> str:
        """The composition as ``ts.parse`` reads it."""
        return spell(self.methods)

    def apply(self, model: nn.Module, *, if_slower: Literal["keep", "dense"] = "keep") -> nn.Module:
        """``ts.apply`` of this plan, in place.

        Args:
            model: the dense model that was planned for.
            if_slower: what becomes of a plan that was measured slower than the dense model: "keep" applies it all the
                same, "dense" leaves the model unchanged.
        """
        if if_slower not in ("keep", "dense"):
            raise TokensieveError(f"if_slower must be 'keep' or 'dense', got {if_slower!r}")
        if self.measured < 1 and if_slower == "dense":
            return model
        return apply(model, self.methods, multiple=self.multiple)


@dataclass(frozen=True)
class _Option:
    """One setting of the knob: what it leaves and what that costs."""

    methods: tuple[Method, ...]
    blocks: tuple[tuple[int, int], ...]
    acting: int
    work: Work
    macs: float


def make_plan(
    model: nn.Module,
    methods: Method | str | Sequence[Method],
    *,
    target_speedup: float | None,
    batch_size: int = 16,
    example: Tensor | None = None,
    multiple: int | None = None,
    fewer_sites: bool = False,
    rounds: int = 5,
    wrap: Callable[[nn.Module], Callable[[Tensor], Any]] | None = None,
    timer: Timer | None = None,
) -> SpeedPlan:
    """Find the setting of a method that makes ``model`` as fast as asked for and removes no more than that takes.

    A handful of sequence lengths and the method itself are timed on the model's device, in its dtype and under the
    autocast of the caller, always beside the dense model. A curve through them (``Latency``) predicts every setting of
    the method's knob; the one of the most MACs that reaches the target is measured, and where prediction and clock
    disagree by more than 2 % the curve is corrected and asked again, three times at most. The model is not changed.

    Args:
        model: the dense model, in any mode; it is timed in evaluation mode.
        methods: a method, a composition or its spec. The knob (``keep`` or ``r``) of its last method is turned.
        target_speedup: dense time over the schedule's time, more than 1; None measures the methods as given.
        batch_size: images at a time. A plan holds for its batch size: small batches gain less.
        example: (B, C, H, W) images on the model's device, repeated up to ``batch_size``; default a random image of the
            model's size.
        multiple: round token counts up to a multiple of 8 or 16, see ``ts.apply``; lengths are then measured there.
        fewer_sites: also consider acting at every second, third or fourth of the method's sites in larger steps. Fewer
            sites cost less, but it is no longer the schedule that was published: look at the accuracy.
        rounds: timings of each variant where six are timed together; of fewer, more.
        wrap: makes a model run as it will later, ``Runtime(...).callable`` for example; default the model itself.
        timer: names and callables to timings; default the clock (``measure.speed.measure``).

    Returns:
        The plan; ``plan.apply(model)`` applies it.

    Raises:
        TokensieveError: the target cannot be reached (says how near the method comes), or the method has no knob, or
            leaves another number of tokens in every image.

    Warns:
        TokensieveWarning: the measured plan is slower than the dense model, or misses its target; or the machine was
            too busy to say.
    """
    chosen = resolve(methods)
    _check(model, chosen, target_speedup, batch_size)
    dense = share_weights(model).eval()
    layout = family_of(dense).family.layout(family_of(dense).owner)
    images = probe_input(dense) if example is None else example
    x = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]
    watch = Stopwatch(dense, x, timer or clock(rounds), wrap or (lambda variant: variant))
    report = count(dense, x[:1])
    length = round(report.blocks[0].attended)

    def option(composition: tuple[Method, ...]) -> _Option:
        found = counts(schedule(composition, layout), layout, patches=length - layout.prefix, multiple=multiple)
        macs = report.rest + sum(b.total(*tokens) for b, tokens in zip(watch.macs, found.blocks, strict=True))
        return _Option(composition, found.blocks, found.acting, watch.work(found.blocks), macs)

    def reduced(one: _Option) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokensieveWarning)
            return apply(share_weights(dense), one.methods, multiple=multiple)

    if target_speedup is None:
        options = [option(chosen)]
    else:
        options = list(_options(_variants(chosen, layout, fewer_sites), length - layout.prefix, option))
    latency = watch.latency(length, multiple)
    first = _gentlest(options, latency, target_speedup, chosen, watch.noisy)
    latency = _with_site_cost(latency, watch, first, reduced(first))
    tried: list[tuple[_Option, float, float]] = []
    for _ in range(ATTEMPTS):
        one = _gentlest(options, latency, target_speedup, chosen, watch.noisy)
        if any(one is before for before, _, _ in tried):
            break
        predicted = latency.speedup(one.work, one.acting)
        measured = 1 / watch.time({"planned": reduced(one)})[1]["planned"]
        tried.append((one, predicted, measured))
        if target_speedup is None or abs(measured / target_speedup - 1) <= TOLERANCE:
            break
        latency = latency.corrected(one.work, one.acting, measured)
    best, predicted, measured = _best(tried, target_speedup)
    found = SpeedPlan(
        methods=best.methods,
        multiple=multiple,
        target=target_speedup,
        predicted=predicted,
        measured=measured,
        promised=report.total / best.macs,
        blocks=best.blocks,
        acting=best.acting,
        latency=latency,
        batch_size=batch_size,
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        noisy=watch.noisy,
    )
    _warn(found)
    return found


def _check(model: nn.Module, methods: Sequence[Method], target: float | None, batch_size: int) -> None:
    if is_applied(model):
        raise TokensieveError("the model is reduced already: plan for the dense model, ts.remove(model) gives it back")
    if target is not None and not 1 < target < float("inf"):
        raise TokensieveError(f"target_speedup must be more than 1 (1.5 means two thirds of the time), got {target}")
    if batch_size < 1:
        raise TokensieveError(f"batch_size must be 1 or more, got {batch_size}")
    for method in methods:
        if method.ragged:
            raise TokensieveError(
                f"{method.name} leaves another number of tokens in every image, so that its time has no plan: "
                "measure it on your images with tokensieve bench"
            )


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


def _options(knobs: Iterator[Knob], patches: int, option: Callable[[tuple[Method, ...]], _Option]) -> Iterator[_Option]:
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


def _gentlest(
    options: Sequence[_Option], latency: Latency, target: float | None, methods: tuple[Method, ...], noisy: bool
) -> _Option:
    """The option of the most MACs that is predicted to reach the target."""

    def speedup(one: _Option) -> float:
        return latency.speedup(one.work, one.acting)

    if target is None:
        return options[0]
    reaching = [one for one in options if speedup(one) >= target]
    if reaching:
        return max(reaching, key=lambda one: one.macs)
    best = max(options, key=speedup)
    doubt = "; the machine was too busy to be sure" if noisy else ""
    cost = f", each site of which costs {1000 * latency.site:.2f} ms," if latency.site else ", were its choice free,"
    raise TokensieveError(
        f"{spell(methods)} cannot make this model {target:g} times as fast: the most{cost} is {speedup(best):.2f} "
        f"({spell(best.methods)}); the dense model takes {1000 * latency.dense:.1f} ms a batch, of which "
        f"{1000 * latency.fixed:.1f} ms do not depend on the tokens: ask for less, or take larger batches{doubt}"
    )


def _with_site_cost(latency: Latency, watch: Stopwatch, one: _Option, reduced: nn.Module) -> Latency:
    """The curve with one point more, where the schedule will be, and with what the method costs at a site."""
    if not one.acting:
        return latency
    free = f"oracle of {spell(one.methods)}"
    _, shares = watch.time({"method": reduced, free: watch.counting(one.blocks)})
    site = max(0.0, shares["method"] - shares[free]) * latency.dense / one.acting
    latency = fit([*latency.samples, Sample(free, one.work, shares[free])], latency.dense, site)
    return latency.corrected(one.work, one.acting, 1 / shares["method"])


def _best(tried: Sequence[tuple[_Option, float, float]], target: float | None) -> tuple[_Option, float, float]:
    """Of what was measured the gentlest that reached the target, else the fastest."""
    reached = [one for one in tried if target is None or one[2] >= target * (1 - TOLERANCE)]
    return max(reached, key=lambda one: one[0].macs) if reached else max(tried, key=lambda one: one[2])


def _warn(found: SpeedPlan) -> None:
    if found.noisy:
        warnings.warn(
            f"timings of {found.spec} lay more than {speed.NOISY:.0%} apart, three times in a row: close other "
            "programs and plan again, or give more rounds",
            TokensieveWarning,
            stacklevel=3,
        )
    if found.measured < 1:
        text = "slower than the dense model: larger batches or higher resolution pay sooner; plan.apply(model, "
        text += "if_slower='dense') leaves the model dense"
    elif found.target is not None and found.measured < found.target * (1 - TOLERANCE):
        text = f"less than the {found.target:g} that was asked for: ask for a little more, or give more rounds"
    else:
        return
    warnings.warn(
        f"{found.spec} was measured at {found.measured:.2f} times the speed of the dense model at batch "
        f"{found.batch_size}, {text}",
        TokensieveWarning,
        stacklevel=3,
    )
