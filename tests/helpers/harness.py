"""The tiny model and the comparison with the plain reference that the parity tests share."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.references import plain as reference

DEPTH, HEADS, PATCHES, SITES = 6, 2, 49, (1, 3, 4)


def tiny() -> nn.Module:
    """Seven by seven patches; the projections are scaled so that attention is far from even."""
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=112, embed_dim=32, depth=DEPTH, num_heads=HEADS, num_classes=10
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name:
                parameter.mul_(20)
            elif parameter.dim() > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def partitions(model: nn.Module, images: Tensor) -> list[set[frozenset[int]]]:
    """The groups of originals that stand together at the end, per image; those that are gone are left out."""
    state = ts.trace(model, images).tokens
    assert state is not None
    found = []
    for row in state.group.tolist():
        groups: dict[int, list[int]] = {}
        for original, place in enumerate(row):
            if place >= 0:
                groups.setdefault(place, []).append(original)
        found.append({frozenset(group) for group in groups.values()})
    return found


def compare(model: nn.Module, images: Tensor, **reduction: Any) -> None:
    """Logits and all tokens to 1e-9, groups and token counts exactly, for every image."""
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    groups = partitions(model, images)
    record = ts.trace(model, images)
    stages = [(s.attended, s.processed) for s in record.stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        wanted_logits, wanted_tokens, run = reference.vit(state, image, HEADS, DEPTH, **reduction)
        assert run.counts == stages
        if run.chosen:
            assert [set((e.group[number] >= 0).nonzero()[:, 0].tolist()) for e in record.events] == run.chosen
        else:
            assert groups[number] == run.partition
        torch.testing.assert_close(tokens[number], wanted_tokens, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted_logits, rtol=0, atol=1e-9)


def compare_each(model: nn.Module, images: Tensor, **reduction: Any) -> None:
    """Every image alone and in the batch, for methods that keep another number of tokens in each."""
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    for number, image in enumerate(images.split(1)):
        compare(model, image, **reduction)
        with torch.no_grad():
            torch.testing.assert_close(model(image)[0], logits[number], rtol=0, atol=1e-9)
            torch.testing.assert_close(model.forward_features(image)[0], tokens[number], rtol=0, atol=1e-9)
