"""The Triton kernels on a GPU: in operators, at real sizes, in whole models, without waiting, in a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.kernels import attention as attention_of
from tests.helpers.kernels import exactly, flat, moving, random, selecting, selector_of
from tokensieve.attention.selector import selected_columns
from tokensieve.methods._attentive import match_pairs
from tokensieve.ops.attention import class_attention, column_sums
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching
from tokensieve.ops.moving import move_tokens, put_back
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top, unit_rows
from tokensieve.tokens.decision import Assignment

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


def movement(batch: int, count: int, dtype: torch.dtype, norm: Norm | None = None) -> tuple[Any, ...]:
    order = random(2, batch, count, device="cuda").argsort(dim=1)
    kept, merging = count // 2, count // 4
    # Crowds: most join the first few.
    onto = (random(3, batch, merging, device="cuda").abs() * 3).long().clamp(max=kept - 1)
    parts = {"keep": order[:, :kept], "moved": order[:, kept : kept + merging], "dropped": order[:, kept + merging :]}
    positions = torch.arange(count, device="cuda").expand(batch, -1)
    size = random(4, batch, count, device="cuda").abs() + 1
    x = random(5, batch, 1 + count, 384, dtype=dtype, device="cuda")
    return moving(x, positions, positions, size, Assignment(**parts, onto=onto), norm)


def calls(batch: int, count: int, dtype: torch.dtype) -> Iterator[Call]:
    """Every operator and its arguments for ``count`` patch tokens."""
    given_to = attention_of(count, batch, 6, count + 1, 64, dtype, True, "cuda")
    metric = random(6, batch, count, 64, device="cuda")
    features = random(7, batch, count // 3, 384, dtype=dtype, device="cuda")
    score = random(8, batch, count, dtype=dtype, device="cuda")
    selector = selector_of(1, 6, "cuda", std=0.2).to(dtype)
    yield class_attention, given_to
    yield column_sums, (*given_to, None, 64, 4)
    yield column_sums, (*given_to, random(9, batch, count + 1, device="cuda") > 0, 64, 1)
    yield selected_columns, (*selecting(selector, given_to), 16, 8, "probabilities")
    yield split_top, (score, count * 7 // 10)
    yield head_mean, (given_to[1],)
    yield unit_rows, (features,)
    yield bipartite_matching, (metric, count // 4, 1)
    yield match_pairs, (features, score[:, : count // 3].contiguous(), count // 12, 4)
    yield density_peaks, (features.float(), count // 10)
    yield density_peaks, (features.float(), count // 10, 5)
    yield move_tokens, movement(batch, count, dtype)
    norm = Norm(random(12, 384, dtype=dtype, device="cuda"), random(13, 384, dtype=dtype, device="cuda"), 1e-6)
    yield move_tokens, movement(batch, count, dtype, norm)
    away = torch.randint(-1, count, (batch, count), device="cuda")
    x, other = (
        random(10, batch, 1 + count, 384, dtype=dtype, device="cuda"),
        random(11, batch, 1 + count, 384, dtype=dtype, device="cuda")[:, 1:],
    )
    yield put_back, (x, away, other, 1, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "count"), [(8, 196), (1, 576), (1, 4096)])
def test_kernels_agree_with_their_references(batch: int, count: int, dtype: torch.dtype) -> None:
    for operator, arguments in calls(batch, count, dtype):
        answer = operator.cuda(*arguments)
        assert answer is not NotImplemented, operator.__name__
        wanted = operator.__wrapped__(*exactly(arguments))
        rounded = dtype != torch.float32 and operator in (move_tokens, selected_columns)
        close = {"rtol": 2e-2, "atol": 2e-3} if rounded else {"rtol": 1e-3, "atol": 1e-4}
        if operator in (bipartite_matching, density_peaks):
            # Two candidates may be nearer to each other than float32 can tell.
            differing = (leaders(*answer) != leaders(*wanted)).double().mean()
            assert differing < 0.02, operator.__name__
            continue
        for got, want in zip(present(answer), present(wanted), strict=True):
            if got.is_floating_point():
                torch.testing.assert_close(got.double(), want.double(), **close)
            else:
                assert torch.equal(got, want), operator.__name__


def present(answer: Any) -> list[Tensor]:
    return [part for part in flat(answer) if part is not None]


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
        for one, other in zip(present(first), present(second), strict=True):
            assert torch.equal(one, other), operator.__name__


def reduced(methods: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=6, num_classes=10).eval().to("cuda", dtype)
    return ts.apply(model, methods)


@pytest.mark.parametrize("methods", METHODS)
def test_models_never_wait(methods: str) -> None:
    model, x = reduced(methods, torch.bfloat16), random(0, 4, 3, 224, 224, dtype=torch.bfloat16, device="cuda")
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
        random(0, 4, 3, 224, 224, dtype=dtype, device="cuda"),
        random(1, 4, 3, 224, 224, dtype=dtype, device="cuda"),
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


def test_operators_launch_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.jit import JITFunction

    launched: list[str] = []
    run = JITFunction.run

    def watch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(kernel.__name__)
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", watch)
    reduced("bat")(random(0, 2, 3, 224, 224, device="cuda"))
    assert {"_class_logits", "_split_top", "_match", "_peaks", "_lead", "_follow", "_put_back"} <= set(launched)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_kernels_follow_their_tensors_to_another_gpu() -> None:
    score = random(0, 3, 50, device="cuda").to("cuda:1")
    assert torch.cuda.current_device() == 0
    for got, want in zip(split_top(score, 20), split_top(score.cpu(), 20), strict=True):
        assert got.device == score.device and torch.equal(got.cpu(), want)
