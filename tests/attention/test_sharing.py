"""Attention maps shared between blocks: found projections, compiled graphs, and who cannot share."""

from __future__ import annotations

import timm
import torch
from timm.layers.attention import Attention
from timm.models.eva import EvaAttention
from torch import nn

import tokensieve as ts
from tokensieve.attention.shared import projections


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).double().eval()


def test_projections_of_queries_and_keys_are_told_apart() -> None:
    for attention, rows in (
        (Attention(48, num_heads=3), [(96,)]),
        (EvaAttention(48, num_heads=3, norm_layer=nn.LayerNorm), [(96,)]),
        (EvaAttention(48, num_heads=3, qkv_fused=False, norm_layer=nn.LayerNorm), [(48, 48)]),
        (nn.Sequential(nn.Linear(48, 144)), []),
    ):
        assert [tuple(part.rows for part in parts) for parts in projections(attention)] == rows


def test_one_graph_in_which_maps_are_shared() -> None:
    torch.compiler.reset()
    model = ts.apply(small(), ts.PSViT(sites=(1,), share=(2, 3)))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        answer = model(x)
        assert [stage.saved > 0 for stage in ts.trace(model, x).stages] == [False, False, True, True]
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), answer)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), answer)
    torch.compiler.reset()


def test_checkpointing_gives_the_same_gradients() -> None:
    x, found = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for checkpointing in (False, True):
        model = ts.apply(small(), ts.PSViT(sites=(1,), share=(2, 3))).train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_biases_of_values_are_kept() -> None:
    """With biases on queries and keys too: what is left out is theirs alone."""
    model = ts.apply(small(), ts.PSViT(keep=0.5, sites=(1,), share=(2,)))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        for block, rows in ((2, slice(0, 96)), (2, slice(96, 144))):
            model.blocks[block].attn.qkv.bias[rows] += 1.0
            assert torch.equal(model(x), before) == (rows.start == 0)
