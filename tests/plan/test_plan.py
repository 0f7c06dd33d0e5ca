"""Plans by a clock that counts operators and multiplications, so that what is fast is the same on every machine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import tokensieve as ts
from tests.helpers.cases import one_of_each_kind
from tests.helpers.models import FIRST
from tokensieve.cli.app import app
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.measure.benchmark import warn_of_slower
from tokensieve.measure.results import DENSE, Results, Row, Speed
from tokensieve.measure.speed import Timing
from tokensieve.methods import _registry as registry
from tokensieve.plan.latency import Latency, Sample, Timer, Work, fit
from tokensieve.tokens.decision import keep_only

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
LAYOUT = ts.Layout(depth=6, dim=48, heads=3, prefix=1, class_token=True, grid=(10, 10))
PLANNED = [name for name, cls in registry.list_methods().items() if cls.knob is not None and not cls.ragged]


class Counting(TorchDispatchMode):
    """Seconds by a made-up device: one nanosecond a multiplication and ``launch`` seconds an operator."""

    def __init__(self, launch: float) -> None:
        super().__init__()
        self.launch, self.seconds = launch, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.seconds += self.launch
        if func in PRODUCTS:
            left, right = args[-2:]
            self.seconds += 1e-9 * left.numel() * right.shape[-1]
        elif "scaled_dot_product" in str(func):
            query, key = args[:2]
            self.seconds += 1e-9 * 2 * query.numel() * key.shape[2]
        return func(*args, **(kwargs or {}))


def clock(launch: float) -> Timer:
    """A timer by the made-up device."""

    def timer(variants: Mapping[str, Callable[[Tensor], Any]], x: Tensor) -> dict[str, Timing]:
        timings = {}
        for name, run in variants.items():
            with torch.no_grad(), Counting(launch) as counting:
                run(x)
            timings[name] = Timing((counting.seconds,), len(x))
        return timings

    return timer


def speedup(model: nn.Module, methods: Any, launch: float, multiple: int | None = None, batch: int = 2) -> float:
    """Of the reduced over the dense model, by the made-up device."""
    reduced = ts.apply(vit(), methods, multiple=multiple)
    timed = clock(launch)({"dense": model, "reduced": reduced}, torch.randn(batch, 3, 160, 160))
    return timed["reduced"].speedup(timed["dense"])


@cache
def _vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=160, depth=6, embed_dim=48, num_heads=3, num_classes=10)


def vit() -> nn.Module:
    """A fresh small model of 100 patches."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=160, depth=6, embed_dim=48, num_heads=3, num_classes=10)
    model.load_state_dict(_vit().state_dict())
    return model.eval()


@pytest.fixture(autouse=True)
def _untrained_selectors_are_meant() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ToSA's selector has not been trained")
        yield


def planned() -> list[Any]:
    """(launch, name): one method of each kind on one of two made-up devices; slowly every method on both."""
    kinds = sorted(one_of_each_kind(FIRST[0], PLANNED))
    soon = {((0.0, 2e-6)[number % 2], name) for number, name in enumerate(kinds)}
    cases = [(launch, name) for launch in (0.0, 2e-6) for name in PLANNED]
    return [pytest.param(*case, marks=() if case in soon else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("launch", "name"), planned())
def test_the_gentlest_setting_that_reaches_the_target(name: str, launch: float) -> None:
    model = vit()
    plan = ts.make_plan(model, name, target_speedup=1.1, batch_size=2, timer=clock(launch))
    assert plan.measured == pytest.approx(speedup(model, plan.methods, launch))
    assert plan.measured >= 1.1 * 0.98
    # The cost of a choice is taken to be the same at every site; that of GTP, for one, falls with its tokens, and that
    # of Expedite with its clusters, which come and go by rows and columns of a grid.
    assert plan.predicted == pytest.approx(plan.measured, rel=0.08 if name == "expedite" else 0.03)
    trace = ts.trace(plan.apply(vit()), torch.randn(1, 3, 160, 160))
    assert [(stage.attended, stage.processed) for stage in trace.stages] == list(plan.blocks)
    assert plan.acting == len(trace.events)
    # A step back on the knob, to the next setting that leaves other counts, and the target is missed.
    (method,) = plan.methods
    assert method.knob is not None
    value, blocks = getattr(method, method.knob), plan.blocks
    while blocks == plan.blocks:
        value = round(value + 0.001, 3) if method.knob == "keep" else value - 1
        gentler = replace(method, **{method.knob: value})
        blocks = counts(schedule((gentler,), LAYOUT), LAYOUT).blocks
    assert speedup(model, gentler, launch) < 1.1 * 1.02


def test_without_costs_beside_the_products_the_curve_is_exact() -> None:
    plan = ts.make_plan(vit(), "random", target_speedup=1.4, batch_size=2, timer=clock(0.0))
    assert plan.latency.error < 1e-6 and plan.latency.site == pytest.approx(0, abs=1e-9)
    assert plan.predicted == pytest.approx(plan.measured, rel=1e-6)
    # All but the patch embedding, which is no product here, is what MACs count.
    assert plan.measured == pytest.approx(plan.promised, rel=0.1)


def test_a_target_out_of_reach_says_how_near_the_method_comes() -> None:
    with pytest.raises(ts.TokensieveError, match=r"cannot make this model 50 times as fast: the most, were its choice"):
        ts.make_plan(vit(), "tome", target_speedup=50, batch_size=2, timer=clock(0.0))
    # Operators that cost more than the products they save: the choice itself is too dear.
    with pytest.raises(
        ts.TokensieveError, match=r"pitome:\S+ cannot .* 1.3 times .* each site of which costs .* take larger"
    ):
        ts.make_plan(vit(), "pitome", target_speedup=1.3, batch_size=2, timer=clock(4e-4))


def test_a_plan_that_does_not_pay_warns_and_can_be_left_out() -> None:
    model = vit()
    with pytest.warns(ts.TokensieveWarning, match=r"0\.\d+ times the speed of the dense model at batch 2, slower"):
        plan = ts.make_plan(model, "tome:r=2", target_speedup=None, batch_size=2, timer=clock(4e-4))
    assert plan.spec == "tome:r=2" and plan.measured < 1
    assert not ts.is_applied(plan.apply(vit(), if_slower="dense"))
    assert ts.applied(plan.apply(vit())) == plan.methods
    with pytest.raises(ts.TokensieveError, match="'keep' or 'dense'"):
        plan.apply(vit(), if_slower="off")  # type: ignore[arg-type]


def test_a_plan_that_pays_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = ts.make_plan(vit(), "evit:keep=0.5", target_speedup=None, batch_size=2, timer=clock(1e-7))
    assert plan.measured > 1
    assert ts.is_applied(plan.apply(vit(), if_slower="dense"))


def test_counts_and_lengths_in_multiples() -> None:
    plan = ts.make_plan(vit(), "tome", target_speedup=1.3, batch_size=2, multiple=16, timer=clock(1e-7))
    assert plan.multiple == 16
    assert {tokens for _, tokens in plan.blocks} <= {101, 96, 80, 64, 48, 32, 16}
    lengths = {int(sample.name.split()[0]) for sample in plan.latency.samples if sample.name.endswith("tokens")}
    assert lengths - {101} <= {80, 64, 48, 32, 16}
    trace = ts.trace(plan.apply(vit()), torch.randn(1, 3, 160, 160))
    assert [stage.processed for stage in trace.stages] == [tokens for _, tokens in plan.blocks]
    assert plan.measured == pytest.approx(speedup(vit(), plan.methods, 1e-7, multiple=16))


@pytest.mark.slow
def test_fewer_sites_where_sites_are_dear() -> None:
    arguments: dict[str, Any] = {"target_speedup": 1.2, "batch_size": 2, "timer": clock(1e-5)}
    every, fewer = (ts.make_plan(vit(), "tome", fewer_sites=thin, **arguments) for thin in (False, True))
    assert every.acting == 6 and fewer.acting < 6
    assert fewer.promised < every.promised and fewer.measured >= 1.2 * 0.98
    # Sites of ToSA are not the blocks it acts at; it keeps its own.
    own, same = (ts.make_plan(vit(), "tosa:score=own", fewer_sites=thin, **arguments) for thin in (False, True))
    assert own.methods == same.methods


@pytest.mark.parametrize("always", [False, True])
def test_disturbed_rounds_are_measured_again(always: bool) -> None:
    """A machine that is busy in every other set of rounds, and one that is busy in all."""
    sets = 0

    def timer(variants: Mapping[str, Callable[[Tensor], Any]], x: Tensor) -> dict[str, Timing]:
        nonlocal sets
        sets += 1
        slow = 3.0 if always or sets % 2 else 1.0
        timings = {}
        for name, timing in clock(1e-7)(variants, x).items():
            seconds = timing.median
            disturbed = slow * seconds if name != "dense" else seconds
            timings[name] = Timing((seconds, disturbed, seconds, disturbed), len(x))
        return timings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = ts.make_plan(vit(), "evit", target_speedup=None, batch_size=2, timer=timer)
    assert plan.noisy is always and sets == (9 if always else 6)
    assert any("three times in a row" in str(warning.message) for warning in caught) is always
    assert always or not caught


def test_the_last_knob_of_a_composition_is_turned() -> None:
    plan = ts.make_plan(vit(), "tome:r=3+tosa:keep=0.5:score=own", target_speedup=1.6, batch_size=2, timer=clock(1e-7))
    assert plan.methods[0] == ts.ToMe(r=3)
    assert plan.methods[1] != ts.ToSA(keep=0.5, score="own")


def test_the_model_is_left_as_it_was() -> None:
    model = vit().train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ts.make_plan(model, "bat", target_speedup=1.2, batch_size=2, timer=clock(1e-7))
    assert model.training and model.blocks[0].training and not ts.is_applied(model)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_batch_size_example_and_wrap_are_what_runs() -> None:
    shapes, wrapped = set(), []

    def timer(variants: Mapping[str, Callable[[Tensor], Any]], x: Tensor) -> Mapping[str, Timing]:
        shapes.add(tuple(x.shape))
        return clock(1e-7)(variants, x)

    def wrap(model: nn.Module) -> Callable[[Tensor], Any]:
        wrapped.append(model)
        return model

    example = torch.randn(2, 3, 160, 160)
    plan = ts.make_plan(vit(), "evit", target_speedup=1.2, batch_size=5, example=example, wrap=wrap, timer=timer)
    assert shapes == {(5, 3, 160, 160)} and plan.batch_size == 5
    assert sum(map(ts.is_applied, wrapped)) >= 2 and len(wrapped) >= 9


@dataclass(frozen=True, kw_only=True)
class Uneven(ts.Method):
    """Another number of tokens in every image."""

    ragged = True
    name = "uneven-of-the-plan-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2

    def assign(self, view: ts.View) -> ts.Assignment:
        return keep_only(torch.arange(view.keep).expand(view.x.shape[0], -1), view.count)


@dataclass(frozen=True, kw_only=True)
class Fixed(Uneven):
    """No option at all."""

    ragged = False
    name = "fixed-of-the-plan-tests"


def test_wrong_input_is_refused() -> None:
    arguments: dict[str, Any] = {"batch_size": 2, "timer": clock(0.0)}
    with pytest.raises(ts.TokensieveError, match="reduced already"):
        ts.make_plan(ts.apply(vit(), "tome"), "bat", target_speedup=1.5, **arguments)
    for target in (1.0, 0.5, -2, math.inf, math.nan):
        with pytest.raises(ts.TokensieveError, match="target_speedup must be more than 1"):
            ts.make_plan(vit(), "bat", target_speedup=target, **arguments)
    with pytest.raises(ts.TokensieveError, match="batch_size must be 1 or more"):
        ts.make_plan(vit(), "bat", target_speedup=1.5, batch_size=0)
    with pytest.raises(ts.TokensieveError, match=r"another number of tokens in every image.*tokensieve bench"):
        ts.make_plan(vit(), Uneven(), target_speedup=1.5, **arguments)
    with pytest.raises(ts.TokensieveError, match="fixed-of-the-plan-tests has no option that sets its cost"):
        ts.make_plan(vit(), Fixed(), target_speedup=1.5, **arguments)
    assert ts.make_plan(vit(), Fixed(), target_speedup=None, **arguments).measured > 1


def test_the_curve_goes_through_what_was_measured() -> None:
    def sample(n: float) -> Sample:
        return Sample(str(n), Work(12 * n, 12 * n * n), (3 + 12 * 0.05 * n + 12 * 1e-4 * n * n) / 200)

    latency = fit([sample(n) for n in (197, 150, 100, 60, 30)], 200.0, site=2.0)
    assert latency.error < 1e-9
    assert (latency.fixed, latency.linear, latency.quadratic) == pytest.approx((3, 0.05, 1e-4))
    work = Work(12 * 80, 12 * 6400)
    expected = 3 + 12 * (0.05 * 80 + 1e-4 * 6400)
    assert latency.speedup(work, 0) == pytest.approx(200 / expected)
    assert latency.speedup(work, 5) == pytest.approx(200 / (expected + 10))
    moved = latency.corrected(work, 5, 1.25)
    assert moved.speedup(work, 5) == pytest.approx(1.25)
    assert moved.corrected(work, 5, 1.5).speedup(work, 5) == pytest.approx(1.5)


def test_coefficients_are_never_negative() -> None:
    """A device on which time does not grow with the length, and one on which it grows less than linearly."""
    for shares in ((1.0, 1.01, 0.99, 1.0), (1.0, 0.9, 0.75, 0.6)):
        samples = [
            Sample(str(n), Work(12 * n, 12 * n * n), share)
            for n, share in zip((200, 150, 100, 50), shares, strict=True)
        ]
        latency = fit(samples, 1.0)
        assert min(latency.fixed, latency.linear, latency.quadratic) >= 0 and latency.error < 0.1
    alone = fit([Sample("dense", Work(2400, 480000), 1.0)], 3.0)
    assert isinstance(alone, Latency) and alone.curve(Work(2400, 480000)) == pytest.approx(3.0)


def entry(batch: int, gain: float) -> Speed:
    return Speed(batch, 100.0, 99.0, 101.0, gain, 1.6, 0.9, 0.95, 1000, False)


def test_bench_warns_of_variants_that_are_slower() -> None:
    def row(name: str, *gains: float) -> Row:
        speeds = [entry(batch, gain) for batch, gain in zip((1, 16, 64), gains, strict=True)]
        return Row(name, 1.0, 2.0, 10, 50.0, 80.0, 90.0, 0.1, speeds)

    rows = [row(DENSE, 0.99, 1.0, 1.0), row("tome:r=4", 0.8, 1.2, 1.3), row("bat", 1.1, 1.2, 0.7)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_slower(Results(settings={}, rows=rows), (1, 16))
    (warning,) = caught
    assert warning.category is ts.TokensieveWarning
    assert "tome:r=4 is slower than the dense model at batch 1 (0.80" in str(warning.message)


runner = CliRunner()


def test_the_command_plans_saves_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokensieve.plan import plan as module

    monkeypatch.setattr(module, "clock", lambda rounds: clock(1e-7))
    common = ["plan", "test_vit", "--img-size", "320", "--batch-size", "2"]
    target = [*common, "--method", "evit", "--target-speedup", "1.3"]
    folder = tmp_path / "planned"
    result = runner.invoke(app, [*target, "--multiple", "8", "--save", str(folder)])
    assert result.exit_code == 0, result.output
    assert "oracle of evit" in result.stdout and "multiples of 8: predicted 1.3" in result.stdout
    planned = ts.load(folder)
    assert ts.is_applied(planned)
    assert ts.trace(planned, torch.randn(1, 3, 320, 320)).stages[-1].processed % 8 == 0
    for arguments, reason in (
        ([*target, "--save", str(folder)], "exists"),
        ([*common, "--method", "evit", "--target-speedup", "90"], "cannot make this model 90 times as fast"),
        ([*common, "--method", "evit", "--target-speedup", "0.9"], "must be more than 1"),
        ([*common, "--method", "evit:keep=0.5,0.7"], "names 2 variants"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert reason in " ".join(result.stderr.split())
    assert runner.invoke(app, [*target, "--save", str(folder), "--force"]).exit_code == 0
