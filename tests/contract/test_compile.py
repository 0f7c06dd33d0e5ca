"""``torch.compile`` and ``torch.export`` of reduced models, on the first small model of every family at two blocks.

Families differ in what surrounds a block, not in what a method compiles to: two methods stand for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import tokensieve as ts
from tests.helpers.cases import one_of_each_kind
from tests.helpers.models import COMPOSED, CONFIGS, DEFAULTS, FACTORIES, FIRST, FIRST_OF_TIMM, images, liven
from tokensieve.tokens.decision import keep_only

RAGGED = {config for config, methods in CONFIGS.items() if any(method.ragged for method in methods)}
# One composition of each kind is enough here: how methods meet does not depend on which ones they are.
KINDS = {(methods[0].returns, methods[1].returns): config for config, methods in COMPOSED.items()}
STATIC = sorted({*DEFAULTS, *KINDS.values()} - RAGGED)


def case(soon: bool, *values: str) -> Any:
    """A case that only ``make test-slow`` runs, unless ``soon``."""
    return pytest.param(*values, marks=() if soon else pytest.mark.slow)


def graphs() -> pytest.MarkDecorator:
    """Soon: one method of each kind on the first model, and one on the second; slowly two on every model, and all of
    them on timm's."""
    cases = []
    for number, first in enumerate(FIRST):
        two = ("bat", "tosa")
        further = {two[1]} if number == 1 else set()
        kinds = further if number else one_of_each_kind(first, STATIC)
        for config in STATIC if first in FIRST_OF_TIMM else two:
            cases.append(case(config in kinds, *first, config))
    return pytest.mark.parametrize(("family", "name", "config"), cases)


def reduced(family: str, name: str, config: str) -> nn.Module:
    """Two blocks, because a compiler takes seconds for each."""
    model = liven(FACTORIES[family][name](depth=2)).double().eval()
    return ts.apply(model, CONFIGS[config])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.parametrize(("family", "name", "config"), [case(config == "bat", *FIRST[0], config) for config in STATIC])
def test_compiles_once_per_shape_into_one_graph(family: str, name: str, config: str) -> None:
    model = reduced(family, name, config)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for batch, frames in ((2, 1), (2, 1), (3, 2), (2, 2)):
            x = images(8, torch.float64)[-batch:]
            torch.testing.assert_close(compiled(x), model(x))
            assert counter.frame_count == frames


def last_images(batch: int) -> Tensor:
    """Cloned, because the compiler also watches where in its storage a tensor begins."""
    return images(8, torch.float64)[-batch:].clone()


@graphs()
def test_compiles_once_for_every_batch(family: str, name: str, config: str) -> None:
    model = reduced(family, name, config)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 2, 5, 8):
            x = last_images(batch)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("config", [case(config == "tome", config) for config in STATIC])
@pytest.mark.parametrize(("family", "name"), FIRST[:1])
def test_compiles_twice_at_most_when_nobody_says_that_the_batch_varies(family: str, name: str, config: str) -> None:
    model = reduced(family, name, config)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch in (2, 3, 5, 2, 8):
            compiled(last_images(batch))
    assert counter.frame_count == 2


@dataclass(frozen=True, kw_only=True)
class Waits(ts.Method):
    """Breaks the graph: which tokens it keeps is asked of the device."""

    name = "waits-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def remaining(self, patches: int, site: int, layout: ts.Layout) -> int:
        return patches // 2

    def assign(self, view: ts.View) -> ts.Assignment:
        first = 1 if view.x.sum() > 0 else 0
        keep = torch.arange(first, first + view.keep, device=view.x.device)
        return keep_only(keep.expand(view.x.shape[0], -1), view.count)


def test_a_graph_break_is_an_error() -> None:
    """The tests above mean something only if they catch a method that breaks the rule."""
    model = ts.apply(liven(FACTORIES["timm-vit"]["plain"](depth=2)).eval(), Waits())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        model(images(2))
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(images(2))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["bat", "tosa", "tome", "evit"])
def test_inductor_gives_the_same_answers(config: str) -> None:
    model = reduced("timm-vit", "plain", config)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 2, 5):
            x = last_images(batch)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


@graphs()
def test_export_with_a_dynamic_batch(family: str, name: str, config: str) -> None:
    model = reduced(family, name, config)
    traced, other = images(2, torch.float64), images(8, torch.float64)[3:]
    with torch.no_grad():
        before = model(traced), model(other)
        dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
        program = torch.export.export(model, (traced,), dynamic_shapes=dynamic)
        # Other runtimes run a scatter slowly, or in an order of their own.
        assert not [
            node for node in program.graph.nodes if "scatter" in str(node.target) or "index_put" in str(node.target)
        ]
        exported = program.module()
        for x, answer in zip((traced, other), before, strict=True):
            torch.testing.assert_close(exported(x), answer)
            assert torch.equal(model(x), answer)
        torch.testing.assert_close(exported(other[:1]), before[1][:1])
    assert ts.applied(model) == CONFIGS[config]
