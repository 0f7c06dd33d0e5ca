"""The CPU kernels inside the graphs of ``torch.compile``: the same answers as eager, and never where a gradient is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tokensieve as ts
from tests.helpers.models import CONFIGS, DEFAULTS, FACTORIES, FIRST, images, liven
from tokensieve.attention.kernel import multiplies_pairs
from tokensieve.ops import cpu
from tokensieve.ops.cpu.build import library_path

pytestmark = pytest.mark.skipif(
    not library_path().exists() and shutil.which("g++") is None, reason="the CPU kernels are not built"
)
STATIC = sorted(config for config in DEFAULTS if not any(method.ragged for method in CONFIGS[config]))

# The kernels of the two papers, of merging and of pruning; the others slowly.
SOON = ("bat", "evit", "tome", "tosa")


def these(configs: Collection[str], soon: Collection[str]) -> pytest.MarkDecorator:
    """Parametrises over ``configs``; those outside ``soon`` run only in ``make test-slow``."""
    marked = [pytest.param(config, marks=() if config in soon else pytest.mark.slow) for config in configs]
    return pytest.mark.parametrize("config", marked)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that runs every graph as it is and remembers which of our operators it holds."""

    def __init__(self) -> None:
        self.ours: set[str] = set()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        self.ours |= {target.split(".")[1] for target in targets if target.startswith("tokensieve.")}
        return graph.forward


class Called(TorchDispatchMode):
    """Remembers which of our operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tokensieve":
            self.ours.add(func._schema.name.removeprefix("tokensieve::"))
        return func(*args, **(kwargs or {}))


def reduced(family: str, name: str, config: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two blocks, because a compiler takes seconds for each."""
    return ts.apply(liven(FACTORIES[family][name](depth=2)).to(dtype).eval(), CONFIGS[config])


@these(STATIC, ("bat", "tosa"))
@pytest.mark.parametrize(("family", "name"), FIRST[:1])
def test_a_compiled_model_runs_the_kernels_that_eager_runs(family: str, name: str, config: str) -> None:
    model, graphs, called = reduced(family, name, config), Graphs(), Called()
    compiled = torch.compile(model, backend=graphs, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for batch in (3, 1):
            x = images(8)[-batch:]
            answer = compiled(x)
            with called:
                assert torch.equal(answer, model(x))
    assert graphs.count == 2
    assert graphs.ours == called.ours


@these(SOON, ("bat",))
def test_the_kernels_keep_the_batch_dynamic(config: str) -> None:
    model, graphs = reduced("timm-vit", "plain", config), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        for batch in (3, 2, 5):
            x = images(8)[-batch:].clone()
            torch._dynamo.mark_dynamic(x, 0)
            assert torch.equal(compiled(x), model(x))
    assert graphs.count == 1


@pytest.mark.skipif(not multiplies_pairs(), reason="no pairs of bfloat16 on this processor")
def test_our_attention_runs_in_compiled_bfloat16_models() -> None:
    model, graphs = reduced("timm-vit", "plain", "tome", torch.bfloat16), Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True, dynamic=False)
    x = images(2).bfloat16()
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert "attend" in graphs.ours


@these(SOON, ("tome",))
def test_a_compiled_training_step_has_gradients_and_none_of_the_kernels_on_their_way(config: str) -> None:
    model, graphs = reduced("timm-vit", "plain", config), Graphs()
    x = images(2)
    model(x).square().sum().backward()
    plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.compile(model, backend=graphs, fullgraph=True, dynamic=False)(x).square().sum().backward()
    assert not graphs.ours & {"move_tokens", "put_back", "attend"}
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name])


def examples() -> dict[str, tuple[Any, ...]]:
    """Arguments of every kernel, laid out as models lay them out."""
    batch, heads, length, dim, patches = 2, 3, 13, 16, 12
    queries, keys, values = torch.randn(batch, length, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind()
    features, x = torch.randn(batch, patches, 8), torch.randn(batch, length, 8)
    places = torch.arange(patches).expand(batch, -1)
    keep, moved, onto = places[:, :9].contiguous(), places[:, 9:].contiguous(), places[:, :3].contiguous()
    size, score = torch.ones(batch, patches), torch.randn(batch, patches)
    symmetric = torch.cdist(features, features)
    return {
        "attend": (queries.bfloat16(), keys.bfloat16(), values.bfloat16(), 0.25, None, True),
        "class_attention": (queries, keys, 0.25, None),
        "column_sums": (queries, keys, 0.25, None, None, 2, None, None, None, None, False),
        "split_top": (score, 5),
        "size_bias": (size, 1),
        "mean_rows": (keys[:, :, 1:], True),
        "match_halves": (features.unsqueeze(1), 3, 1),
        "split_fused": (score, 5),
        "pair_and_cluster": (x, 1, score, 6, 2, 2, 2),
        "match_pairs": (features, score, 3, 2),
        "density_peaks": (features, 4, 0),
        "move_tokens": (x, places, places, size, keep, moved, onto, None, True),
        "put_back": (x, places, None, 1, True),
        "agglomerate": (symmetric, 4, 2),
        "greedy_determinant": (features, score.abs() + 0.1, 4),
        "greedy_cover": (symmetric, 4),
        "distances_between": (symmetric,),
        "window_products": (features, features[:, :4].contiguous(), 3, 4, 2, 2, 1),
        "window_sums": (torch.rand(batch, patches, 9), features, 3, 4, 2, 2, 1),
    }


def test_every_kernel_has_its_shapes_and_an_example() -> None:
    assert cpu.available()
    known = {name.removeprefix("tokensieve::") for name in torch._C._dispatch_get_all_op_names() if "sieve::" in name}
    assert known == set(examples()) | {"can_attend"}
    for kernel in examples():
        for key in ("CPU", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tokensieve::{kernel}", key), (kernel, key)


@pytest.mark.parametrize("kernel", examples())
def test_the_shapes_are_those_of_the_kernel(kernel: str) -> None:
    assert cpu.available()
    if kernel == "attend" and not multiplies_pairs():
        pytest.skip("no pairs of bfloat16 on this processor")
    operator = getattr(torch.ops.tokensieve, kernel).default
    torch.library.opcheck(operator, examples()[kernel], test_utils=("test_schema", "test_faketensor"))
