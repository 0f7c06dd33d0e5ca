"""The tap, the key bias and the probes, against attention written out in full."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tokensieve as ts
from tokensieve.attention.kernel import MASK_EPSILON, biased_attention, fold_bias, key_bias
from tokensieve.attention.selector import Selector
from tokensieve.attention.signals import Attended, attention_rows, logits, received
from tokensieve.attention.tap import Tap
from tokensieve.ops.attention import row_blocks


def heads_of(
    seed: int, batch: int = 2, heads: int = 3, length: int = 17, dim: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, length, dim, generator=generator, dtype=torch.float64) for _ in range(3))
    return 2 * q, k, v


def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(-1, -2) * scale
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v


def small_vit(**options: Any) -> nn.Module:
    return (
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=4, **options
        )
        .double()
        .eval()
    )


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"init_values": 0.1}, {"reg_tokens": 2}])
def test_the_tap_sees_one_call_and_changes_nothing(options: dict[str, Any]) -> None:
    block = small_vit(**options).blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    tap = Tap()
    with tap:
        tapped = block.attn(x)
    assert len(tap.calls) == 1
    assert torch.equal(tapped, block.attn(x))
    seen = tap.attended()
    joined = explicit(seen.queries, seen.keys, seen.values, scale=seen.scale)
    torch.testing.assert_close(block.attn.proj(block.attn.norm(joined.transpose(1, 2).flatten(2))), tapped)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"init_values": 0.1}, {"reg_tokens": 2}])
def test_a_tap_in_the_place_of_a_mask_sees_and_gives_the_same(options: dict[str, Any]) -> None:
    block = small_vit(**options).blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    bias = torch.randn(2, 1, 1, 5, dtype=torch.float64)
    around, instead = Tap(bias, wanted={"outputs"}), Tap(bias, wanted={"outputs"})
    with around:
        expected = block.attn(x)
    assert instead.by_mask
    assert torch.equal(block.attn(x, attn_mask=instead.mask), expected)
    theirs, ours = around.attended(), instead.attended()
    assert torch.equal(theirs.queries, ours.queries) and torch.equal(theirs.keys, ours.keys)
    assert theirs.outputs is not None and ours.outputs is not None and torch.equal(theirs.outputs, ours.outputs)
    with pytest.raises(TypeError):
        F.softmax(instead.mask, dim=0)  # it is a mask of the fused attention and nothing else


def test_the_tap_sees_nothing_outside_its_block() -> None:
    block = small_vit().blocks[0]
    tap = Tap()
    block.attn(torch.randn(1, 5, 16, dtype=torch.float64))
    with tap:
        pass
    block.attn(torch.randn(1, 5, 16, dtype=torch.float64))
    assert tap.calls == []
    with pytest.raises(ts.RefusedError, match="never called the fused kernel"):
        tap.attended()


def test_parallel_attentions_are_laid_side_by_side() -> None:
    q, k, v = heads_of(0)
    tap = Tap()
    with tap:
        F.scaled_dot_product_attention(q, k, v)
        F.scaled_dot_product_attention(2 * q, k, v)
    seen = tap.attended()
    assert torch.equal(seen.queries, torch.cat([q, 2 * q], dim=1)) and seen.keys.shape[1] == 6


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.zeros(17, 17, dtype=torch.float64)}])
def test_masked_attention_is_refused(options: dict[str, Any]) -> None:
    tap = Tap()
    with pytest.raises(ts.RefusedError, match="causal or masked"), tap:
        F.scaled_dot_product_attention(*heads_of(0), **options)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_key_bias_is_that_of_an_explicit_softmax(scale: float | None) -> None:
    q, k, v = heads_of(1)
    bias = torch.randn(2, 1, 1, 17, dtype=torch.float64)
    wanted = explicit(q, k, v, bias, scale)
    torch.testing.assert_close(biased_attention(q, k, v, bias, scale=scale), wanted, rtol=1e-12, atol=1e-12)
    tap = Tap(bias)
    with tap:
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, scale=scale), wanted, rtol=1e-12, atol=1e-12)
    assert (wanted - explicit(q, k, v, None, scale)).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("dim", [7, 8, 15, 32])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_folded_bias_equals_the_mask(dtype: torch.dtype, tolerance: float, dim: int, scale: float | None) -> None:
    q, k, v = (t.to(dtype) for t in heads_of(2, dim=dim))
    bias = torch.randint(1, 30, (2, 1, 1, 17)).to(dtype).log()
    bias[0, ..., :3] = -math.inf
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    fq, fk, fv, factor = fold_bias(q, k, v, bias, scale)
    assert fq.shape == fk.shape == fv.shape and fq.shape[-1] % 8 == 0 and fq.shape[-1] > dim
    folded = F.scaled_dot_product_attention(fq, fk, fv, scale=factor)
    torch.testing.assert_close(folded[..., :dim], masked, rtol=tolerance, atol=tolerance)
    assert folded[..., dim:].abs().max() == 0


def test_log_size_attention_equals_repeating_keys() -> None:
    q, k, v = heads_of(3, length=6)
    size = torch.tensor([[1.0, 3, 2, 1, 4], [5, 1, 1, 1, 2]])
    bias = key_bias(1, size, None, None)
    assert bias is not None and bias.shape == (2, 1, 1, 6)
    found = biased_attention(q, k, v, bias.double())
    for image in range(2):
        times = torch.cat([torch.ones(1), size[image]]).long()
        wanted = explicit(q[image], k[image].repeat_interleave(times, dim=1), v[image].repeat_interleave(times, dim=1))
        torch.testing.assert_close(found[image], wanted, rtol=1e-6, atol=1e-6)


def test_padding_is_seen_by_nobody_and_masks_keep_a_trace() -> None:
    q, k, v = heads_of(4, length=6)
    alive = torch.tensor([[True, True, False, True, False], [True] * 5])
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]] * 2, dtype=torch.float64, requires_grad=True)
    bias = key_bias(1, None, alive, mask)
    assert bias is not None
    attention = attention_rows(Attended(q, k, v, 8**-0.5, bias), slice(None))
    assert (attention[0, :, :, [3, 5]] == 0).all()
    assert (attention[:, :, :, 2] > 0).all() and (attention[:, :, :, 2] < 1000 * MASK_EPSILON).all()
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
    attention[..., 2].sum().backward()
    assert mask.grad is not None and (mask.grad[:, 1] > 0).all(), "a removed token must feel what it would have changed"


def test_no_reason_for_a_bias_gives_none() -> None:
    assert key_bias(1, None, None, None) is None


@pytest.mark.parametrize("block", [1, 2, 5, 16, 17, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_received_streamed_equals_the_whole_map(block: int, biased: bool) -> None:
    q, k, v = heads_of(5)
    bias = torch.randn(2, 1, 1, 17, dtype=torch.float64) if biased else None
    attended = Attended(q, k, v, 8**-0.5, bias)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    whole = (scores if bias is None else scores + bias).softmax(dim=-1)
    torch.testing.assert_close(received(attended, block=block), whole.mean(dim=2), rtol=0, atol=1e-14)
    torch.testing.assert_close(received(attended, block=block).sum(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    voters = torch.rand(2, 17) < 0.5
    voters[:, 0] = True
    for image in range(2):
        wanted = whole[image][:, voters[image]].mean(dim=1)
        torch.testing.assert_close(received(attended, voters, block)[image], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("block", "stride"), [(1, 2), (3, 4), (64, 5), (4, 1)])
def test_strided_rows_are_every_stride_th(block: int, stride: int) -> None:
    rows = [i for piece in row_blocks(17, block, stride) for i in range(17)[piece]]
    assert rows == list(range(0, 17, stride))
    q, k, v = heads_of(6)
    attended = Attended(q, k, v, 8**-0.5)
    wanted = attention_rows(attended, slice(None))[:, :, ::stride].mean(dim=2)
    torch.testing.assert_close(received(attended, block=block, stride=stride), wanted, rtol=0, atol=1e-14)


def test_logits_with_and_without_scale() -> None:
    q, k, v = heads_of(7)
    attended = Attended(q, k, v, 0.25)
    torch.testing.assert_close(logits(attended, slice(0, 1)), (q[:, :, :1] @ k.transpose(-1, -2)) * 0.25)
    torch.testing.assert_close(logits(attended, slice(2, 5), scaled=False), q[:, :, 2:5] @ k.transpose(-1, -2))
    assert logits(Attended(q.bfloat16(), k.bfloat16(), v, 0.25)).dtype == torch.float32


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


LENGTH, BLOCK, HEADS = 401, 16, 3


def test_no_probe_holds_the_whole_map() -> None:
    q, k, v = (t.float() for t in heads_of(8, batch=1, heads=HEADS, length=LENGTH))
    attended = Attended(q, k, v, 8**-0.5)
    whole = HEADS * LENGTH * LENGTH
    seen = Largest()
    with seen:
        logits(attended)
    assert seen.elements == whole, "the counter must see the whole map where there is one"
    for probe in (
        lambda: received(attended, block=BLOCK),
        lambda: Selector(HEADS).columns(attended, BLOCK, 1, "probabilities"),
        lambda: attention_rows(attended, slice(0, 1)),
    ):
        seen = Largest()
        with seen, torch.no_grad():
            probe()
        # A selector has four hidden channels per head.
        assert 0 < seen.elements <= 4 * HEADS * BLOCK * LENGTH < whole


@pytest.mark.parametrize("spec", ["topk:score=received", "tosa:score=own", "tosa:block=16", "tosa:score=class", "evit"])
def test_no_method_holds_the_whole_map(spec: str) -> None:
    # 24 x 24 patches; the fused kernel keeps its own working memory, which is not a tensor.
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=192, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=0
    ).eval()
    images = torch.randn(1, 3, 192, 192)
    ts.apply(model, spec)
    for site in model.modules():
        if isinstance(site, Selector):
            site.fitted.fill_(True)
    seen = Largest()
    with seen, torch.no_grad():
        model(images)
    assert 577 * 24 <= seen.elements < 3 * 577 * 577
