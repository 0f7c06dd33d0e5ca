"""The Triton kernels on a GPU: through the doors, at real sizes, in whole models, without waiting, in a CUDA graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.attention.selector import Selector, selected_columns
from tokensieve.attention.signals import Attended, class_attention, column_sums
from tokensieve.ops import cuda as gpu
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, match_pairs, unit_rows
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top
from tokensieve.tokens.decision import Assignment
from tokensieve.tokens.move import move_tokens, put_back

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
METHODS = ["bat", "bat-paper", "tome:r=8", "evit", "topk", "tosa", "tosa:score=own", "tome:r=4+tosa:score=own"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Call = tuple[Callable[..., Any], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """And fresh selectors are meant."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)
        yield


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def attention(batch: int, heads: int, length: int, dtype: torch.dtype) -> Attended:
    qkv = random(length, batch, length, 3, heads, 64, dtype=dtype).permute(2, 0, 3, 1, 4)
    return Attended(qkv[0], qkv[1], qkv[2], 0.125, random(1, batch, 1, 1, length))


def movement(batch: int, count: int, dtype: torch.dtype) -> tuple[Any, ...]:
    order = random(2, batch, count).argsort(dim=1)
    kept, merging = count // 2, count // 4
    onto = (random(3, batch, merging).abs() * 3).long().clamp(max=kept - 1)  # crowds: most join the first few
    parts = {"keep": order[:, :kept], "moved": order[:, kept : kept + merging], "dropped": order[:, kept + merging :]}
    positions = torch.arange(count, device="cuda").expand(batch, -1)
    size = random(4, batch, count).abs() + 1
    return random(5, batch, 1 + count, 384, dtype=dtype), positions, positions, size, Assignment(**parts, onto=onto)


def calls(batch: int, count: int, dtype: torch.dtype) -> Iterator[Call]:
    """Every operator and its arguments for ``count`` patch tokens."""
    given_to = attention(batch, 6, count + 1, dtype)
    metric = random(6, batch, count, 64)
    features = random(7, batch, count // 3, 384, dtype=dtype)
    score = random(8, batch, count, dtype=dtype)
    torch.manual_seed(0)
    selector = Selector(6).to("cuda", dtype)
    for parameter in selector.parameters():
        nn.init.normal_(parameter, std=0.2)
    yield class_attention, (given_to,)
    yield column_sums, (given_to, None, 64, 4)
    yield column_sums, (given_to, random(9, batch, count + 1) > 0, 64, 1)
    yield selected_columns, (selector, given_to, 16, 8, "probabilities")
    yield split_top, (score, count * 7 // 10)
    yield head_mean, (given_to.keys,)
    yield unit_rows, (features,)
    yield bipartite_matching, (metric, count // 4, 1)
    yield match_pairs, (features, score[:, : count // 3].contiguous(), count // 12, 4)
    yield density_peaks, (features.float(), count // 10)
    yield density_peaks, (features.float(), count // 10, 5)
    yield move_tokens, movement(batch, count, dtype)
    norm = Norm(random(12, 384, dtype=dtype), random(13, 384, dtype=dtype), 1e-6)
    yield move_tokens, (*movement(batch, count, dtype), norm)
    away = torch.randint(-1, count, (batch, count), device="cuda")
    x, other = random(10, batch, 1 + count, 384, dtype=dtype), random(11, batch, 1 + count, 384, dtype=dtype)[:, 1:]
    yield put_back, (x, away, other, 1, True)


def in_double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        if isinstance(value, Norm):
            return Norm(value.weight.double(), None if value.bias is None else value.bias.double(), value.eps)
        if isinstance(value, Attended):
            bias = None if value.bias is None else value.bias.double()
            return Attended(value.queries.double(), value.keys.double(), value.values.double(), value.scale, bias)
        return copy.deepcopy(value).double() if isinstance(value, nn.Module) else value

    return tuple(one(value) for value in arguments)


def flat(answer: Any) -> list[Tensor]:
    return [part for part in (answer if isinstance(answer, tuple) else (answer,)) if part is not None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "count"), [(8, 196), (1, 576), (1, 4096)])
def test_kernels_agree_with_their_references(batch: int, count: int, dtype: torch.dtype) -> None:
    for operator, arguments in calls(batch, count, dtype):
        kernel, reference = getattr(gpu, operator.__name__), operator.__wrapped__  # type: ignore[attr-defined]
        answer = kernel(*arguments)
        assert answer is not NotImplemented, operator.__name__
        wanted = reference(*in_double(arguments))
        rounded = dtype != torch.float32 and operator in (move_tokens, selected_columns)
        close = {"rtol": 2e-2, "atol": 2e-3} if rounded else {"rtol": 1e-3, "atol": 1e-4}
        if operator in (bipartite_matching, density_peaks):
            # Two candidates may be nearer to each other than float32 can tell.
            differing = (leaders(*answer) != leaders(*wanted)).double().mean()
            assert differing < 0.02, operator.__name__
            continue
        for got, want in zip(flat(answer), flat(wanted), strict=True):
            if got.is_floating_point():
                torch.testing.assert_close(got.double(), want.double(), **close)
            else:
                assert torch.equal(got, want), operator.__name__


def leaders(keep: Tensor, moved: Tensor, onto: Tensor) -> Tensor:
    """Which old token leads the new one that each old token is in."""
    led = torch.cat([keep, keep.gather(1, onto)], dim=1)
    return led.gather(1, torch.cat([keep, moved], dim=1).argsort(dim=1))


@pytest.mark.parametrize(("batch", "count"), [(8, 196), (1, 4096)])
def test_kernels_never_wait_and_give_the_same_bits_again(batch: int, count: int) -> None:
    for operator, arguments in calls(batch, count, torch.bfloat16):
        first = operator(*arguments)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = operator(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(flat(first), flat(second), strict=True):
            assert torch.equal(one, other), operator.__name__


def reduced(methods: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=10).eval().to("cuda", dtype)
    return ts.apply(model, methods)


@pytest.mark.parametrize("methods", METHODS)
def test_models_never_wait(methods: str) -> None:
    model, x = reduced(methods, torch.bfloat16), random(0, 4, 3, 224, 224, dtype=torch.bfloat16)
    model(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("methods", METHODS)
def test_models_run_in_a_cuda_graph(methods: str, dtype: torch.dtype) -> None:
    """A graph captured on one batch gives another batch's own answer: nothing was decided while capturing."""
    model, x, other = (
        reduced(methods, dtype),
        random(0, 4, 3, 224, 224, dtype=dtype),
        random(1, 4, 3, 224, 224, dtype=dtype),
    )
    wanted = model(other)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = model(x)
    x.copy_(other)
    graph.replay()
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(answer, wanted, **close)


def test_the_doors_launch_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    launched: list[str] = []
    run = JITFunction.run

    def watch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(kernel.__name__)
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", watch)
    reduced("bat")(random(0, 2, 3, 224, 224))
    assert {"_class_logits", "_split_top", "_match", "_peaks", "_lead", "_follow", "_put_back"} <= set(launched)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_kernels_follow_their_tensors_to_another_gpu() -> None:
    score = random(0, 3, 50).to("cuda:1")
    assert torch.cuda.current_device() == 0
    for got, want in zip(split_top(score, 20), split_top(score.cpu(), 20), strict=True):
        assert got.device == score.device and torch.equal(got.cpu(), want)
