"""Fitting ToSA's selectors: the loss is the KL it says it is, it falls, and nothing but the selectors changes."""

import copy
import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.attention import attention_rows
from tokensieve.train.selectors import attention_of, fit_selectors, kl_rows, selectors_of


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, embed_dim=48, num_heads=3).eval()
    for block in vit.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return vit


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_attention_of_gives_every_block_its_own_map(model: nn.Module, images: Tensor) -> None:
    attended = attention_of(model, images[:2])
    assert len(attended) == 4
    inputs: list[Tensor] = []
    handle = model.blocks[2].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(images[:2])
    handle.remove()
    attention = model.blocks[2].attn
    qkv = attention.qkv(inputs[0]).reshape(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = (qkv[0] @ qkv[1].transpose(-1, -2) / 4).softmax(-1)
    torch.testing.assert_close(attention_rows(attended[2], slice(None)), expected)


def test_the_loss_is_the_kl_of_whole_maps(model: nn.Module, images: Tensor) -> None:
    here, there = attention_of(model, images[:2])[:2]
    ts.apply(model, "tosa:keep=0.5")
    selector = selectors_of(model)[0]
    target = attention_rows(there, slice(None))
    own = attention_rows(here, slice(None))
    expected = (target * (target.log() - own.log())).sum()
    parts = [kl_rows(selector, here, there, rows) for rows in (slice(0, 5), slice(5, 17))]
    # A fresh selector predicts the layer's own map, so both losses are the same number.
    for which in (0, 1):
        torch.testing.assert_close(sum(part[which].detach() for part in parts), expected, rtol=1e-4, atol=1e-4)


def test_fitting_lowers_the_loss_and_touches_nothing_else(model: nn.Module, images: Tensor) -> None:
    ts.apply(model, "tosa:keep=0.5")
    before = copy.deepcopy(model.state_dict())
    losses = fit_selectors(model, images.repeat(4, 1, 1, 1).split(8), lr=2e-2)
    assert [loss.block for loss in losses] == [0, 2]
    assert all(loss.fitted < loss.own for loss in losses)
    for key, value in model.state_dict().items():
        if ".tokensieve." not in key:
            assert torch.equal(value, before[key]), key
    assert all(bool(selector.fitted) for selector in selectors_of(model).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images[:1])


def test_the_same_seed_gives_the_same_selectors(model: nn.Module, images: Tensor) -> None:
    fitted = []
    for _ in range(2):
        torch.manual_seed(3)
        reduced = ts.apply(copy.deepcopy(model), "tosa:keep=0.5")
        fit_selectors(reduced, images.split(8))
        fitted.append(reduced.state_dict())
    assert all(torch.equal(fitted[0][key], fitted[1][key]) for key in fitted[0])


def test_a_model_without_selectors_is_refused(model: nn.Module, images: Tensor) -> None:
    ts.apply(model, "tosa:score=own")
    with pytest.raises(ts.TokensieveError, match="no ToSA selectors"):
        fit_selectors(model, images.split(8))


def test_no_images_are_refused(model: nn.Module) -> None:
    ts.apply(model, "tosa:keep=0.5")
    with pytest.raises(ts.TokensieveError, match="no images"):
        fit_selectors(model, [])
