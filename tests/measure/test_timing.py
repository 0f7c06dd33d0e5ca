"""Runtimes, compiled variants, and sets of rounds that are discarded because an oracle moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.utils import counters

import tokensieve as ts
from tokensieve.measure import speed, timing
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import DENSE
from tokensieve.measure.speed import Timing
from tokensieve.measure.timing import Variant, time_variants
from tokensieve.models.graphs import Graphed
from tokensieve.models.runtime import Runtime


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return timm.create_model("test_vit").eval()


def test_an_oracle_moves_when_its_speed_up_changes_and_not_when_the_machine_slows_down() -> None:
    dense = Timing((2.0, 2.0, 4.0, 4.0), 1)
    assert speed.drift(Timing((1.0, 1.0, 2.0, 2.0), 1), dense) == 0.0
    assert speed.drift(Timing((1.0, 1.0, 2.2, 2.2), 1), dense) == pytest.approx(0.1)
    assert speed.drift(Timing((1.1, 1.1, 2.0, 2.0), 1), dense) == pytest.approx(0.1)
    assert speed.moved(Timing((1.0, 1.0, 2.2, 2.2), 1), dense)
    assert not speed.moved(Timing((1.0, 1.0, 2.06, 2.06), 1), dense)
    assert speed.drift(Timing((1.0, 5.0, 1.0), 1), Timing((1.0, 1.0, 1.0), 1)) == 0.0


class Machine:
    """Answers ``speed.measure`` with made-up rounds: one tuple of the oracle's seconds for each set asked for."""

    def __init__(self, *oracles: tuple[float, ...]) -> None:
        self.oracles = iter(oracles)
        self.warmups: list[int] = []

    def measure(self, runs: Any, x: Any, *, rounds: int, warmup: int, **_: Any) -> dict[str, Timing]:
        self.warmups.append(warmup)
        seconds = dict.fromkeys(runs, (2.0,) * rounds)
        seconds |= {"tome:r=4": (1.25,) * rounds, "tome:r=4 oracle": next(self.oracles)}
        return {name: Timing(values, len(x)) for name, values in seconds.items()}


STILL, MOVED, WORSE = (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.5, 1.5), (1.0, 1.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("sets", "kept", "noisy"),
    [((STILL,), STILL, False), ((MOVED, STILL), STILL, False), ((WORSE, MOVED, WORSE), MOVED, True)],
)
def test_a_set_whose_oracle_moved_is_measured_again(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch, sets: tuple[Any, ...], kept: Any, noisy: bool
) -> None:
    x = torch.randn(2, 3, 160, 160)
    reduced = reduce(small, ts.parse("tome:r=4"))
    variants = [Variant(DENSE, small, count(small, x)), Variant("tome:r=4", reduced, count(reduced, x))]
    machine = Machine(*sets)
    monkeypatch.setattr(timing.speed, "measure", machine.measure)
    timed = time_variants(small, variants, x, runtime=Runtime(), rounds=4)
    assert machine.warmups == [3, 1, 1][: len(sets)]
    assert timed.discarded == len(sets) - 1
    assert timed.oracles["tome:r=4"].seconds == kept
    figures = timed.speed("tome:r=4", 2.0)
    assert (figures.discarded, figures.noisy) == (len(sets) - 1, noisy)
    assert (figures.S, figures.S_over_F) == (1.6, 0.8)
    assert figures.S_over_O == pytest.approx(Timing((1.25,) * 4, 2).speedup(Timing(kept, 2)))
    assert timed.speed(DENSE, 1.0).O is None
    assert 0 < timed.peaks["tome:r=4"] < timed.peaks[DENSE]


def test_the_model_and_its_images_are_cast() -> None:
    runtime = Runtime(model_dtype="bfloat16")
    model = runtime.place(timm.create_model("test_vit").eval())
    with torch.inference_mode():
        assert runtime.callable(model)(torch.randn(2, 3, 160, 160)).dtype == torch.bfloat16
    assert runtime.dtype == "bfloat16"
    assert Runtime(model_dtype="float16", amp=True).dtype == "bfloat16"
    assert Runtime().dtype == "float32"


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (Runtime(device="abacus"), "is not available"),
        (Runtime(amp_dtype="int8"), "amp-dtype must be"),
        (Runtime(model_dtype="int8"), "dtype must be"),
        (Runtime(cuda_graph=True), "a CUDA graph needs a CUDA device"),
    ],
)
def test_what_cannot_run_here_is_refused(runtime: Runtime, reason: str) -> None:
    with pytest.raises(ts.TokensieveError, match=reason):
        runtime.check()


def test_a_cuda_graph_refuses_an_input_elsewhere(small: nn.Module) -> None:
    with pytest.raises(ts.TokensieveError, match="needs its input on a CUDA device"):
        Graphed(small)(torch.randn(1, 3, 160, 160))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_answers_as_the_model_does(small: nn.Module) -> None:
    runtime = Runtime(device="cuda", cuda_graph=True)
    dense = runtime.place(timm.create_model("test_vit").eval())
    model = reduce(dense, ts.parse("tome:r=4"))
    run = runtime.callable(model)
    with torch.inference_mode():
        for batch in (2, 3, 2):
            x = torch.randn(batch, 3, 160, 160, device="cuda")
            torch.testing.assert_close(run(x), model(x))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_the_ninth_model_of_a_class_is_compiled_as_well() -> None:
    runtime = Runtime(torchcompile="eager")
    counters["stats"].clear()
    with torch.inference_mode():
        for _ in range(10):
            runtime.callable(nn.Linear(2, 2))(torch.zeros(1, 2))
    assert counters["stats"]["unique_graphs"] == 10
