"""Token counts rounded to multiples: every method follows, nothing else changes, and the default stays as published."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import (
    CONFIGS,
    FACTORIES,
    FIRST,
    METHODS,
    PATCHES,
    build,
    images,
    layout_of,
    liven,
    nothing,
    run,
)
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.methods import _registry as registry
from tokensieve.tokens.decision import keep_only

OWN = {config for config, methods in CONFIGS.items() if any(method.ragged or method.gridded for method in methods)}
STATIC = {config: methods for config, methods in CONFIGS.items() if config not in OWN}
every_static = every_case(STATIC, FIRST)
DEIT = ts.Layout(depth=12, dim=384, heads=6, prefix=1, class_token=True, grid=(14, 14))


@every_static
@pytest.mark.parametrize("multiple", [None, 4, 8])
def test_announced_counts_are_what_runs(family: str, name: str, config: str, multiple: int | None) -> None:
    model = ts.apply(build(family, name), STATIC[config], multiple=multiple)
    layout = layout_of(model)
    announced = counts(schedule(STATIC[config], layout), layout, multiple=multiple)
    trace = ts.trace(model, images(2))
    assert [(stage.attended, stage.processed) for stage in trace.stages] == list(announced.blocks)
    assert [(event.before, event.after) for event in trace.events] == [
        (before, after) for before, after in announced.steps.values() if after < before
    ]
    assert announced.acting == len(trace.events)


@every_static
@pytest.mark.parametrize("multiple", [4, 8])
def test_what_is_left_is_a_multiple(family: str, name: str, config: str, multiple: int) -> None:
    model, x = ts.apply(build(family, name).double(), STATIC[config], multiple=multiple), images(3, torch.float64)
    layout = layout_of(model)
    trace = ts.trace(model, x)
    assert len(trace.events) == counts(schedule(STATIC[config], layout), layout, multiple=multiple).acting
    assert trace.events or layout.prefix == 1  # of 21 tokens, what is mild leaves 17 or more: rounded up, all of them
    for event in trace.events:
        assert (event.after + layout.prefix) % multiple == 0
    if len(STATIC[config]) == 1:  # of two methods, one may take tokens away while others of the other's sit out
        exact = counts(schedule(STATIC[config], layout), layout)
        for (own, _), stage in zip(exact.blocks, trace.stages, strict=True):
            assert own <= stage.attended <= layout.prefix + PATCHES
    tokens = trace.tokens
    assert tokens is not None
    if not any(method.mixes for method in STATIC[config]):  # there, who stands where is a matter of degree
        assert torch.equal(tokens.sizes.sum(dim=1).long(), (tokens.group >= 0).sum(dim=1))
    together = run(model, x)
    torch.testing.assert_close(torch.cat([run(model, image) for image in x.split(1)]), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_remove_stays_bit_equal(method: str) -> None:
    config = nothing(registry.list_methods()[method])
    if config is None or config.ragged or config.gridded:
        pytest.skip(f"{method} has no static config that removes nothing")
    model, x = build(*FIRST[0]), images(2)
    dense = run(model, x)
    assert torch.equal(run(ts.apply(model, config, multiple=8), x), dense)


def test_a_small_r_becomes_larger_steps_at_fewer_sites() -> None:
    placed = schedule(ts.parse("tome:r=3"), DEIT)
    exact, rounded = counts(placed, DEIT), counts(placed, DEIT, multiple=16)
    assert [processed for _, processed in exact.blocks] == [197 - 3 * n for n in range(1, 13)]
    assert [processed for _, processed in rounded.blocks] == [
        197,
        192,
        192,
        192,
        192,
        192,
        176,
        176,
        176,
        176,
        176,
        176,
    ]
    assert rounded.acting == 2


def test_tome_removes_half_at_most() -> None:
    placed = schedule(ts.parse("tome:r=60"), DEIT)
    left = [after for _, after in counts(placed, DEIT, multiple=32).steps.values()]
    assert left[:4] == [159, 95, 63, 63] and all((after + 1) % 32 == 0 for after in left)


@settings(deadline=None, max_examples=300)
@given(
    patches=st.integers(2, 300),
    keep=st.floats(0.01, 1.0),
    clusters=st.floats(0.01, 1.0),
    surplus=st.integers(-4, 4),
    data=st.data(),
)
def test_bat_leaves_any_number_it_is_asked_for(
    patches: int, keep: float, clusters: float, surplus: int, data: st.DataObject
) -> None:
    method = ts.BAT(keep=keep, clusters=clusters, surplus=surplus)
    own = method.remaining(patches, 0, DEIT)
    assume(patches > 2 and own < patches)
    left = data.draw(st.integers(min(max(2, own - 10), patches - 1), patches - 1))
    attentive, pairs, centres = method.counts(patches, 0, left)
    assert attentive - pairs + centres == left
    assert 1 <= attentive < patches and 0 <= pairs <= attentive // 2 and 1 <= centres <= patches - attentive
    assert method.counts(patches, 0, own) == method.counts(patches, 0)


def test_another_input_size_is_rounded_too() -> None:
    model = liven(FACTORIES["timm-vit"]["plain"](dynamic_img_size=True)).eval()
    ts.apply(model, ts.TopK(keep=0.5, sites=(1,)), multiple=8)
    for x, left in ((images(1), 16), (torch.randn(1, 3, 96, 112), 24)):
        assert ts.trace(model, x).stages[-1].processed == left


def test_copies_and_files_keep_the_rounding(tmp_path: Path) -> None:
    model = FACTORIES["timm-vit"]["plain"]().eval()
    x = images(2)
    ts.apply(model, "bat+tosa:keep=0.5:score=own", multiple=8)
    answer = run(model, x)
    assert torch.equal(run(copy.deepcopy(model), x), answer)
    again = ts.load(ts.save(model, tmp_path / "saved"))
    assert torch.equal(run(again, x), answer)
    assert [s.processed for s in ts.trace(again, x).stages] == [s.processed for s in ts.trace(model, x).stages]
    plain = ts.apply(ts.remove(model), "bat+tosa:keep=0.5:score=own")
    assert [s.processed for s in ts.trace(plain, x).stages] != [s.processed for s in ts.trace(again, x).stages]


def test_one_graph_with_rounding() -> None:
    torch.compiler.reset()
    model = ts.apply(build("timm-vit", "plain").double(), "bat+tosa:keep=0.5:score=own", multiple=8)
    x = images(2, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    torch.compiler.reset()


@dataclass(frozen=True, kw_only=True)
class Deaf(ts.Method):
    """Keeps every second token whatever it is asked for."""

    name = "deaf-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2

    def assign(self, view: ts.View) -> ts.Assignment:
        return keep_only(torch.arange(0, view.count, 2).expand(view.x.shape[0], -1), view.count)


@dataclass(frozen=True, kw_only=True)
class Uneven(Deaf):
    """Another number in every image."""

    ragged = True
    name = "uneven-of-the-tests"


def test_what_cannot_be_rounded_says_so() -> None:
    model = build("timm-vit", "plain")
    with pytest.raises(ts.TokensieveError, match="whole number, 1 or more"):
        ts.apply(model, "tome", multiple=0)
    with pytest.raises(ts.TokensieveError, match=r"uneven-of-the-tests leaves another number .* leave multiple out"):
        ts.apply(model, Uneven(), multiple=8)
    assert not ts.is_applied(model)
    ts.apply(model, Deaf(), multiple=8)
    with pytest.raises(ts.TokensieveError, match="where multiple=8 asks for 15: its assign"):
        run(model, images(1))
