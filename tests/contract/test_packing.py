"""Images of different lengths in one row: against padding and masks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokensieve as ts
from tests.helpers.models import build, images
from tokensieve.attention.packing import PADDED, Packing, rows_of

PREFIX = 1


def batch(lengths: list[int], seed: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    """(B, P + M, C) tokens and (B, M) which of the slots hold one, scattered over the slots."""
    generator = torch.Generator().manual_seed(seed)
    slots = max(lengths) + 1
    alive = torch.zeros(len(lengths), slots, dtype=torch.bool)
    for row, length in zip(alive, lengths, strict=True):
        row[torch.randperm(slots, generator=generator)[:length]] = True
    return torch.randn(len(lengths), PREFIX + slots, channels, generator=generator, dtype=torch.float64), alive


def packed(alive: Tensor, sized: bool = True) -> Packing:
    found = rows_of(alive, PREFIX, sized)
    assert isinstance(found, Packing)
    return found


lengths = st.lists(st.integers(0, 7), min_size=2, max_size=5).filter(lambda given: sum(given) > 0)


@settings(deadline=None, max_examples=40)
@given(lengths, st.integers(0, 9))
def test_back_and_forth_loses_nothing_but_padding(lengths: list[int], seed: int) -> None:
    x, alive = batch(lengths, seed)
    packing = packed(alive)
    valid = F.pad(alive, (PREFIX, 0), value=True)
    row = packing.pack(x)
    assert row.shape == (1, sum(lengths) + PREFIX * len(lengths), 6)
    assert torch.equal(row[0], x[valid])
    assert torch.equal(packing.unpack(row), x * valid.unsqueeze(2))


@settings(deadline=None, max_examples=40)
@given(lengths, st.integers(0, 9), st.booleans())
def test_attention_is_that_of_every_image_alone(lengths: list[int], seed: int, sized: bool) -> None:
    x, alive = batch(lengths, seed)
    packing = packed(alive, sized)
    valid = F.pad(alive, (PREFIX, 0), value=True)
    parts = x.unflatten(2, (3, 1, 2)).permute(2, 0, 3, 1, 4)  # queries, keys, values: (B, 1, L, 2)
    bias = torch.randn(valid.shape, dtype=torch.float64) if sized else torch.zeros(valid.shape, dtype=torch.float64)
    bias = bias.masked_fill(~valid, -torch.inf)[:, None, None]
    wanted = F.scaled_dot_product_attention(*parts, attn_mask=bias)

    def kernel(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        assert (bias is not None) == sized
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    row = [packing.pack(part.squeeze(1)).unsqueeze(1) for part in parts]
    found = packing.attend(kernel, row[0], row[1], row[2], bias)
    torch.testing.assert_close(packing.unpack_heads(found)[:, 0][valid], wanted[:, 0][valid])


def test_a_batch_that_is_nearly_full_stays_padded() -> None:
    assert rows_of(torch.ones(2, 8, dtype=torch.bool), PREFIX) is PADDED
    assert rows_of(torch.tensor([[True] * 8, [True] * 4 + [False] * 4]), PREFIX) is not PADDED


@pytest.mark.parametrize("method", ["ats", "algm:threshold=0.6"])
def test_linear_layers_run_on_the_tokens_that_are_there(method: str) -> None:
    model, x = ts.apply(build("timm-vit", "plain"), method), images(4)
    rows: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.GELU):
            module.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[:-1].numel()))
    trace = ts.trace(model, x)
    last = trace.stages[-1]
    assert last.alive is not None and not last.alive.all()
    assert rows[-1] == last.alive.sum() + 4 * (last.processed - last.alive.shape[1])


def test_gradients_pass() -> None:
    model, x = ts.apply(build("timm-vit", "plain"), "algm:threshold=0.3"), images(3)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.flatten(1).norm(dim=1).min() > 0
