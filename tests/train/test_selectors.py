"""Fitting ToSA's selectors: the loss is the KL it says it is, it falls, and nothing but the selectors changes."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.attention.signals import attention_rows
from tokensieve.train.selectors import FitSelectors, attention_of, kl_rows, kl_streamed, selectors_of


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
    maps = attention_of(model, images[:2])
    here, there = maps[0], maps[1]
    ts.apply(model, "tosa:keep=0.5")
    selector = selectors_of(model)[0]
    target = attention_rows(there, slice(None))
    own = attention_rows(here, slice(None))
    expected = (target * (target.log() - own.log())).sum()
    parts = [kl_rows(selector, here, there, rows) for rows in (slice(0, 5), slice(5, 17))]
    # A fresh selector predicts the layer's own map, so both losses are the same number.
    for which in (0, 1):
        torch.testing.assert_close(sum(part[which].detach() for part in parts), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [3, 64])
def test_streamed_rows_give_loss_and_gradients_of_the_whole_map(model: nn.Module, images: Tensor, block: int) -> None:
    maps = attention_of(model, images[:2])
    ts.apply(model, "tosa:keep=0.5:queries=all")
    selector = selectors_of(model)[0]
    whole = kl_rows(selector, maps[0], maps[1], slice(None))[0] / (2 * 3 * 17)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in selector.parameters()]
    selector.zero_grad()
    streamed, own = kl_streamed(selector, maps[0], maps[1], block=block)
    streamed.backward()
    torch.testing.assert_close(streamed, whole)
    torch.testing.assert_close(own, whole.detach())
    for parameter, gradient in zip(selector.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_some_rows_estimate_the_loss_of_all(model: nn.Module, images: Tensor) -> None:
    maps = attention_of(model, images[:2])
    ts.apply(model, "tosa:keep=0.5:queries=all")
    selector = selectors_of(model)[0]
    exact = float(kl_streamed(selector, maps[0], maps[1])[0].detach())
    drawn = [float(kl_streamed(selector, maps[0], maps[1], rows=4)[0].detach()) for _ in range(60)]
    assert len(set(drawn)) > 1  # the rows start at random
    assert sum(drawn) / len(drawn) == pytest.approx(exact, rel=0.1)


def test_a_selector_of_the_class_row_is_fitted_to_that_row(model: nn.Module, images: Tensor) -> None:
    maps = attention_of(model, images[:2])
    selector = selectors_of(ts.apply(model, "tosa:keep=0.5"))[0]
    target, own = (attention_rows(maps[block], slice(0, 1)) for block in (1, 0))
    expected = (target * (target.log() - own.log())).sum() / (2 * 3)
    for loss in kl_streamed(selector, maps[0], maps[1]):
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_reduced_network_is_read_with_all_its_tokens(model: nn.Module, images: Tensor) -> None:
    """The second pass: where tokens skip a layer, its map is that of the whole set, from what earlier layers left."""
    dense = attention_of(model, images[:2])
    reduced = attention_of(ts.apply(copy.deepcopy(model), "tosa:keep=0.5:score=own"), images[:2])
    assert all(reduced[number].keys.shape == dense[number].keys.shape for number in range(4))
    torch.testing.assert_close(reduced[1].keys, dense[1].keys)  # nothing has been skipped before layer 1 attends
    assert not torch.allclose(reduced[3].keys, dense[3].keys)


@pytest.mark.parametrize("queries", ["class", "all"])
def test_fitting_lowers_the_loss_and_touches_nothing_else(model: nn.Module, images: Tensor, queries: str) -> None:
    dense = copy.deepcopy(model)
    objective = FitSelectors(ts.apply(model, f"tosa:keep=0.5:queries={queries}"), dense)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-2)
    figures: dict[str, Tensor] = {}
    for batch in images.repeat(4, 1, 1, 1).split(8):
        loss, figures = objective(batch, None, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["kl"] < figures["kl_own"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != (".learned." in key and "fitted" not in key), key
    assert not any(bool(selector.fitted) for selector in selectors_of(model).values())
    objective.finish(model)
    assert all(bool(selector.fitted) for selector in selectors_of(model).values())


def test_a_model_without_selectors_is_refused(model: nn.Module) -> None:
    ts.apply(model, "tosa:score=own")
    with pytest.raises(ts.TokensieveError, match="no ToSA selectors"):
        FitSelectors(model, model)
