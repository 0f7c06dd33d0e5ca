"""The gentlest schedule that is as fast as asked for, on this device, at this batch size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tokensieve.engine.apply import apply, is_applied, resolve
from tokensieve.engine.probe import probe_input
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure import speed
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.models.load import share_weights
from tokensieve.plan.latency import Latency, Stopwatch, Timer, clock
from tokensieve.plan.search import TOLERANCE, Found, Search


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

    A few lengths and the method itself are timed beside the dense model, on its device, in its dtype and under the
    caller's autocast. A curve through them (``Latency``) predicts every setting of the knob; the one of the most MACs
    that reaches the target is measured, and where prediction and clock disagree by more than 2 % the curve is corrected
    and asked again, three times at most. The model is not changed.

    Args:
        model: the dense model, in any mode; it is timed in evaluation mode.
        methods: a method, a composition or its spec. The knob (``keep`` or ``r``) of its last method is turned.
        target_speedup: dense time over the schedule's time, more than 1; None measures the methods as given.
        batch_size: images at a time. A plan holds for its batch size: small batches gain less.
        example: (B, C, H, W) images on the model's device, repeated up to ``batch_size``; default a random one.
        multiple: round token counts up to a multiple of 8 or 16, see ``ts.apply``.
        fewer_sites: also try every second, third or fourth of the method's sites in larger steps: cheaper, but no
            longer the schedule that was published.
        rounds: timings of each variant where six are timed together; of fewer, more.
        wrap: makes a model run as it will later, ``Runtime(...).callable`` for example; default the model itself.
        timer: names and callables to timings; default the clock (``measure.speed.measure``).

    Raises:
        TokensieveError: the target cannot be reached (says how near the method comes), or the method has no knob, or
            leaves another number of tokens in every image.

    Warns:
        TokensieveWarning: the plan is slower than the dense model, or misses its target; or the machine was busy.
    """
    chosen = resolve(methods)
    _check(model, chosen, target_speedup, batch_size)
    dense = share_weights(model).eval()
    x = _images(dense, example, batch_size)
    watch = Stopwatch(dense, x, timer or clock(rounds), wrap or (lambda variant: variant))
    found = Search(dense, watch, chosen, target_speedup, multiple).run(fewer_sites)
    plan = _plan(found, watch, target_speedup, multiple)
    _warn(plan)
    return plan


def _images(dense: nn.Module, example: Tensor | None, batch_size: int) -> Tensor:
    """(batch_size, C, H, W): the example, repeated, or random numbers."""
    images = probe_input(dense) if example is None else example
    return images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]


def _plan(found: Found, watch: Stopwatch, target: float | None, multiple: int | None) -> SpeedPlan:
    """What the search found, with what it holds for."""
    best = found.best
    return SpeedPlan(
        methods=best.option.methods,
        multiple=multiple,
        target=target,
        predicted=best.predicted,
        measured=best.measured,
        promised=found.dense_macs / best.option.macs,
        blocks=best.option.blocks,
        acting=best.option.acting,
        latency=found.latency,
        batch_size=len(watch.x),
        dtype=str(watch.x.dtype).removeprefix("torch."),
        device=str(watch.x.device),
        noisy=watch.noisy,
    )


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
