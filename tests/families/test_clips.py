"""Clips whose frames keep as many tokens: TimeSformer, VideoPrism."""

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
from tests.helpers.towers import Run, tensors
from tokensieve.families._locate import family_of
from tokensieve.measure.macs import count

SIDE, FRAMES = 64, 4
NOTHING = "tome:r=0+topk:keep=1.0:sites=[1]"
KINDS = (
    "tome:r=2",
    "bat:keep=0.5:sites=[1]",
    "tosa:keep=0.5:score=own",
    "evit:keep=0.5:sites=[1]",
    "ats:sites=[1]",
    "expedite:sites=[1]",
)


def timesformer(**others: Any) -> nn.Module:
    import transformers

    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.TimesformerConfig(**small, image_size=SIDE, patch_size=16, num_frames=FRAMES, **others)
    model: nn.Module = transformers.TimesformerForVideoClassification(config)
    return model


def videoprism() -> nn.Module:
    from transformers import VideoPrismVisionConfig, VideoPrismVisionModel

    small = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96, "image_size": SIDE}
    layers = {"num_spatial_layers": 4, "num_temporal_layers": 2}
    config = VideoPrismVisionConfig(
        **small, **layers, num_frames=FRAMES, tubelet_size=[1, 16, 16], attn_logit_softcapping=2.0
    )
    model: nn.Module = VideoPrismVisionModel(config)
    return model


TOWERS: dict[str, Callable[[], nn.Module]] = {"timesformer": timesformer, "videoprism": videoprism}
every_tower = pytest.mark.parametrize("name", TOWERS)


class Products(Run):
    """Adds up matrix products as well: attentions that are written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            self.macs += result.numel() * args[0].shape[-1]
        return result


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return liven(TOWERS[name]()).eval()


def tower(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return copy.deepcopy(_built(name)).to(dtype)


def clips(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(x))


@every_tower
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_where_nothing_is_removed_and_reduced_where_something_is(name: str, dtype: torch.dtype) -> None:
    model, x = tower(name, dtype), clips(dtype=dtype)
    dense = run(model, x)
    exact = run(ts.apply(model, NOTHING), x)
    assert all(torch.equal(one, other) for one, other in zip(exact, dense, strict=True))
    for spec in KINDS:
        ts.apply(ts.remove(model), spec)
        reduced = run(model, x)
        assert [part.shape for part in reduced] == [part.shape for part in dense]
        assert any(not torch.equal(one, other) for one, other in zip(reduced, dense, strict=True))
        if dtype == torch.float32:
            for one, every in zip(run(model, x[1:]), reduced, strict=True):  # the same with any neighbours
                half = len(every) // 2
                torch.testing.assert_close(one, every[half:], rtol=1e-4, atol=1e-4)
    restored = run(ts.remove(model), x)
    assert all(torch.equal(one, other) for one, other in zip(restored, dense, strict=True))


def test_places_that_are_left_run_as_a_clip_of_their_own() -> None:
    """Blocks behind the site, as written, on the places that are left: time and frames know no other."""
    model, x = tower("timesformer", torch.float64), clips(1, torch.float64)
    located = family_of(model)
    blocks: list[Any] = located.family.blocks(located.owner)
    seen: list[Tensor] = []
    ts.apply(model, "random:keep=0.5:sites=[1]")
    handle = blocks[2].register_forward_pre_hook(lambda module, args: seen.append(args[0].whole()))
    state = ts.trace(model, x).tokens
    handle.remove()
    ts.remove(model)
    assert state is not None and state.count == 8  # of 4 × 4 places
    places = seen[0][:, 1:].view(1, 16, FRAMES, -1)[:, state.rep[0]]
    tokens = torch.cat([seen[0][:, :1], places.flatten(1, 2)], dim=1)
    with torch.no_grad():
        for block in blocks[2:]:
            tokens = block(tokens)[0]
    own = state.x.view(1, 9, FRAMES, -1)
    torch.testing.assert_close(own[:, 1:].flatten(1, 2), tokens[:, 1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own[:, 0], tokens[:, :1].expand(-1, FRAMES, -1), rtol=1e-9, atol=1e-9)


def test_capped_logits_are_capped_by_parts_too() -> None:
    model = tower("videoprism", torch.float64)
    block = model.spatial_layers[0]
    tokens = torch.randn(2, 9, 48, dtype=torch.float64)
    family = family_of(model).family
    with torch.no_grad():
        wanted = block(tokens)
        found = family.mlp(block, family.attention(block, tokens))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # the model's own softmax is in float32
    block.attention.attn_logit_softcapping = None
    with torch.no_grad():
        assert (family.mlp(block, family.attention(block, tokens)) - wanted).abs().max() > 1e-3


@every_tower
def test_macs_counted_are_macs_run(name: str) -> None:
    model, x = tower(name), clips(1)
    for spec in (None, "random:keep=0.5:sites=[1]"):
        if spec is not None:
            ts.apply(model, spec)
        mode = Products()
        with mode:
            run(model, x)
        counted = count(model, x)
        # Once more for what the cap changes, in blocks that run by their parts; and time, which is outside of them.
        more = 0.0
        if name == "videoprism":
            more = sum(48.0 * FRAMES * block.attended**2 for block in counted.blocks[1:]) if spec else 0.0
            more += 2 * 2 * 48 * FRAMES**2 * 16
        assert counted.total + more == pytest.approx(mode.macs, rel=1e-6)


def test_other_kinds_of_attention_are_refused() -> None:
    with pytest.raises(ts.RefusedError, match="its attention_type is 'space_only'"):
        ts.apply(timesformer(attention_type="space_only"), "tome:r=2")


def test_gradients_reach_every_parameter() -> None:
    model = tower("timesformer").train()
    tensors(ts.apply(model, "tome:r=2")(clips()))[0].square().mean().backward()  # type: ignore[operator]
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
