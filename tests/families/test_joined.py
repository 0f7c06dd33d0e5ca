"""Encoders whose windows are sequences, joined in some blocks: LW-DETR, RF-DETR."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tokensieve.attention.windows import Joined
from tokensieve.measure.macs import count

SIDE = 128
KINDS = ("tome:r=6", "bat:keep=0.5:sites=[0]", "ats:sites=[0]", "pitome:keep=0.8:sites=[0,1,2]")
SMALL = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 8}


def lw_detr() -> nn.Module:
    from transformers import LwDetrViTConfig
    from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone

    others = {"pretrain_image_size": 64, "window_block_indices": [0, 2], "num_windows": 4, "out_indices": [2, 4]}
    model: nn.Module = LwDetrViTBackbone(LwDetrViTConfig(**SMALL, **others))
    return model


def rf_detr() -> nn.Module:
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config
    from transformers.models.rf_detr.modeling_rf_detr import RfDetrDinov2Backbone

    model: nn.Module = RfDetrDinov2Backbone(RfDetrDinov2Config(**SMALL, num_windows=2, out_indices=[2, 4]))
    return model


TOWERS: dict[str, Callable[[], nn.Module]] = {"lw-detr": lw_detr, "rf-detr": rf_detr}
every_tower = pytest.mark.parametrize("name", TOWERS)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return liven(TOWERS[name]()).eval()


def tower(name: str) -> Any:
    return copy.deepcopy(_built(name))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(x))


@every_tower
def test_exact_where_nothing_is_removed_and_reduced_where_something_is(name: str) -> None:
    model, x = tower(name), images()
    dense = run(model, x)
    exact = run(ts.apply(model, "tome:r=0+topk:keep=1.0:sites=[0]"), x)
    assert all(torch.equal(one, other) for one, other in zip(exact, dense, strict=True))
    for spec in KINDS:
        ts.apply(ts.remove(model), spec)
        reduced = run(model, x)
        assert [part.shape for part in reduced] == [part.shape for part in dense]
        assert any(not torch.equal(one, other) for one, other in zip(reduced, dense, strict=True))
        for one, every in zip(run(model, x[1:]), reduced, strict=True):
            torch.testing.assert_close(one[0], every[1], rtol=1e-4, atol=1e-4)
    restored = run(ts.remove(model), x)
    assert all(torch.equal(one, other) for one, other in zip(restored, dense, strict=True))


def test_each_window_loses_as_many_tokens() -> None:
    model = ts.apply(tower("lw-detr"), "tome:r=6")
    trace = ts.trace(model, images(1))
    assert trace.tokens is not None and len(trace.tokens.x) == 4  # windows of 8 × 8 patches
    assert [stage.processed for stage in trace.stages] == [58, 52, 46, 40]


def test_methods_that_read_the_attention_act_where_a_window_attends_alone() -> None:
    with pytest.raises(
        ts.TokensieveError, match=r"in block 1, where it is cut into windows or joined .* sites among \[0, 2\]"
    ):
        ts.apply(tower("lw-detr"), "evit:keep=0.5:sites=[1]")


def test_joined_sequences_attend_to_one_another_with_the_bias_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 4 * 5, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, 1, 1, 5, generator=generator, dtype=torch.float64)

    def plain(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None) -> Tensor:
        assert added is not None
        return (query @ key.transpose(2, 3) + added).softmax(-1) @ value

    expected = plain(q, k, v, torch.stack([torch.cat([*bias[:4, 0, 0]]), torch.cat([*bias[4:, 0, 0]])])[:, None, None])
    torch.testing.assert_close(Joined(4).attend(plain, q, k, v, bias), expected)
    assert torch.equal(Joined(4).unpack_heads(q)[5], q[1, :, 5:10])


@every_tower
def test_macs_are_of_the_whole_image(name: str) -> None:
    model, x = tower(name), images(1)
    dense, reduced = count(model, x).total, count(ts.apply(model, "random:keep=0.5:sites=[1]"), x)
    tokens = 256 + (4 if name == "rf-detr" else 0)
    linear = 12 * 48 * 48 * tokens  # of each block: hidden layers of the MLP are 4 × 48
    pairs = [4 * (tokens // 4) ** 2, tokens**2]
    joined = 2 if name == "lw-detr" else 1
    blocks = 4 * linear + 2 * 48 * ((4 - joined) * pairs[0] + joined * pairs[1])
    assert dense == pytest.approx(blocks + 256 * 48 * 192, rel=1e-6)
    assert reduced.blocks[3].attended == tokens // 4 - 32
