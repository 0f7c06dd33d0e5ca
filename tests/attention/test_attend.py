"""Our attention in bfloat16 against exact attention, and where it may run."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tokensieve as ts
from tokensieve.attention.kernel import attend, attends_faster, multiplies_pairs
from tokensieve.measure.macs import count
from tokensieve.measure.oracle import oracle

here = pytest.mark.skipif(
    not multiplies_pairs(), reason="no kernels here, or a processor that does not multiply pairs of bfloat16"
)


def three(seed: int, batch: int, heads: int, length: int, dim: int, rows: int | None = None) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(batch, length, 3, heads, dim, generator=generator).bfloat16().permute(2, 0, 3, 1, 4)
    return whole[0][:, :, :rows], whole[1], whole[2]


def attention_map(query: Tensor, key: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    logits = query.double() @ key.double().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if bias is None else logits + bias.double()).softmax(dim=-1)


def answered(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    out, _ = attend.cpu(query, key, value, None, scale)
    return out


@here
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.one_of(st.integers(1, 70), st.integers(1000, 1100)),
    st.sampled_from([1, 7, 8, 32, 64, 72, 80]),
    st.sampled_from([None, 0.05, 1.0]),
    st.sampled_from(["none", "any", "padding"]),
)
def test_the_kernel_is_as_exact_as_bfloat16_allows(
    seed: int, batch: int, heads: int, length: int, dim: int, scale: float | None, biased: str
) -> None:
    query, key, value = three(seed, batch, heads, length, dim)
    bias = None
    if biased != "none":
        bias = torch.randn(batch, 1, 1, length, generator=torch.Generator().manual_seed(seed))
    if bias is not None and biased == "padding":
        bias[..., (length + 1) // 2 :] = -torch.inf
    answer, row = attend.cpu(query, key, value, bias, scale, class_row=True)
    assert answer.shape == query.shape and answer.dtype == torch.bfloat16
    # Shares are rounded to 8 bits before they meet the values, and the answer once more.
    whole = attention_map(query, key, bias, scale)
    torch.testing.assert_close(answer.double(), whole @ value.double(), rtol=0.02, atol=0.02)
    assert row.shape == (batch, length) and row.dtype == torch.float32
    torch.testing.assert_close(row.double(), whole[:, :, 0].mean(dim=1), rtol=1e-4, atol=1e-6)
    alone, nothing = attend.cpu(query, key, value, bias, scale)
    assert nothing is None and torch.equal(alone, answer)


@here
def test_large_logits_neither_overflow_nor_lose_the_largest() -> None:
    query, key, value = three(0, 1, 2, 1500, 64)
    answer = answered(query * 40, key * 40, value, 1.0)
    exact = attention_map(query * 40, key * 40, None, 1.0) @ value.double()
    torch.testing.assert_close(answer.double(), exact, rtol=0.02, atol=0.02)


@here
def test_other_counts_of_queries_and_every_row_alone() -> None:
    query, key, value = three(1, 2, 3, 90, 16, rows=41)
    answer = answered(query, key, value)
    for row in (0, 7, 31, 32, 40):
        assert torch.equal(answered(query[:, :, row : row + 1], key, value), answer[:, :, row : row + 1])
    assert torch.equal(answered(query[1:], key[1:], value[1:]), answer[1:])


def test_the_kernel_stands_aside_for_other_dtypes_and_gradients() -> None:
    query, key, value = three(2, 1, 2, 9, 8)
    for dtype in (torch.float32, torch.float16, torch.float64):
        assert attend.cpu(query.to(dtype), key.to(dtype), value.to(dtype), None) is NotImplemented
        assert not attends_faster(query[0].to(dtype))
    learned = query.clone().requires_grad_()
    assert attend.cpu(learned, key, value, None) is NotImplemented
    torch.testing.assert_close(
        attend(query, key, value, None), attend.__wrapped__(query, key, value, None), rtol=0.02, atol=0.02
    )


class Spy(TorchDispatchMode):
    """Counts the calls of a kernel."""

    def __init__(self, kernel: str = "attend") -> None:
        super().__init__()
        self.kernel = kernel
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += str(func) == f"tokensieve.{self.kernel}.default"
        return func(*args, **(kwargs or {}))


@here
@pytest.mark.parametrize(
    ("spec", "calls"),
    [("evit:keep=0.5", 9), ("tome:r=5", 12), ("tosa:keep=0.5:score=own", 11), ("evit:keep=1", 0), ("tome:r=0", 0)],
)
def test_it_runs_from_the_first_block_that_removes_tokens_in_model_and_oracle_alike(spec: str, calls: int) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, pretrained=False).eval().bfloat16()
    images = torch.randn(2, 3, 64, 64).bfloat16()
    with torch.inference_mode():
        with Spy() as spy:
            dense = model(images)
        assert spy.calls == 0
        ts.apply(model, spec)
        report = count(model, images)
        with Spy() as spy:
            answer = model(images)
        assert spy.calls == calls
        if calls == 0:
            assert torch.equal(answer, dense)
        ts.remove(model)
        with Spy() as spy:
            oracle(model, report)(images)
        assert spy.calls == calls


@here
@pytest.mark.parametrize("spec", ["evit:keep=0.5", "bat", "ats"])
def test_class_attention_comes_from_the_attention_itself(spec: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, pretrained=False).eval().bfloat16()
    ts.apply(model, spec)
    images = torch.randn(2, 3, 64, 64).bfloat16()
    with torch.inference_mode(), Spy("class_attention") as apart, Spy() as ours:
        model(images)
    assert apart.calls == 0 and ours.calls > 0
    model.float()
    with torch.inference_mode(), Spy("class_attention") as apart:
        model(images.float())
    assert apart.calls > 0
