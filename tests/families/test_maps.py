"""Encoders of maps, in windows and globally: SAM and its like, ViTDet, SAM 3, timm's samvit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import Run, tensors
from tokensieve.attention import windows as windowed
from tokensieve.attention.positions import along_axis, folded
from tokensieve.attention.windows import Border, WindowRows
from tokensieve.families._locate import family_of
from tokensieve.measure.macs import count
from tokensieve.measure.oracle import OracleBlock, oracle
from tokensieve.plan import make_plan

SIDE, PATCH, WINDOW = 160, 16, 4  # 10 × 10 patches, in windows that reach beyond the border
KINDS = (
    "tome:r=20",
    "bat:keep=0.5:sites=[1]",
    "tosa:keep=0.5:sites=[2]",
    "evit:keep=0.5:sites=[1]",
    "ats:sites=[1]",
    "tome:r=9:sites=[0]",
    "pitome:keep=0.9:sites=[0,2]",
)
NOTHING = "tome:r=0+topk:keep=1.0:sites=[1]"


def of_transformers(folder: str, config: str, kind: str, attention: str = "sdpa", **others: Any) -> nn.Module:
    import importlib

    package = f"transformers.models.{folder}"
    small = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    chosen = getattr(importlib.import_module(f"{package}.configuration_{folder}"), config)(
        **small, window_size=WINDOW, **others
    )
    cls = getattr(importlib.import_module(f"{package}.modeling_{folder}"), kind)
    model: nn.Module = cls._from_config(chosen, attn_implementation=attention)
    return model


def of_timm(**others: Any) -> nn.Module:
    small = {"img_size": SIDE, "embed_dim": 48, "depth": 4, "num_heads": 3, "neck_chans": 16, "num_classes": 5}
    return timm.create_model("samvit_base_patch16", window_size=WINDOW, global_attn_indexes=(1, 3), **small, **others)


SAM = {"global_attn_indexes": [1, 3], "mlp_dim": 96, "output_channels": 8}
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "sam": lambda: of_transformers("sam", "SamVisionConfig", "SamVisionModel", **SAM),
    "sam, eager": lambda: of_transformers("sam", "SamVisionConfig", "SamVisionModel", "eager", **SAM),
    "sam-hq": lambda: of_transformers("sam_hq", "SamHQVisionConfig", "SamHQVisionModel", **SAM),
    "got-ocr": lambda: of_transformers("got_ocr2", "GotOcr2VisionConfig", "GotOcr2VisionEncoder", "eager", **SAM),
    "vitdet": lambda: of_transformers(
        *("vitdet", "VitDetConfig", "VitDetModel", "eager"),
        window_block_indices=[0, 2],
        use_relative_position_embeddings=True,
    ),
    "sam3": lambda: of_transformers(
        *("sam3", "Sam3ViTConfig", "Sam3ViTModel"),
        global_attn_indexes=[1, 3],
        intermediate_size=96,
        pretrain_image_size=64,
    ),
    "samvit": of_timm,
    "samvit, rotary": lambda: of_timm(use_rope=True, use_rel_pos=False),
}
every_tower = pytest.mark.parametrize("name", TOWERS)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = liven(TOWERS[name]()).eval()
    for parameter, weight in model.named_parameters():
        if "rel_pos" in parameter or "pos_embed" in parameter:
            nn.init.normal_(weight, std=0.3)
    return model


def tower(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tower of its own, so that no test sees what another did to it."""
    return copy.deepcopy(_built(name)).to(dtype)


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(x))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_tower
def test_exact_where_nothing_is_removed_and_reduced_where_something_is(name: str) -> None:
    model, x = tower(name), images()
    dense = run(model, x)
    assert same(run(ts.apply(model, NOTHING), x), dense)
    for spec in KINDS:
        ts.apply(ts.remove(model), spec)
        reduced = run(model, x)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        for one, every in zip(run(model, x[1:]), reduced, strict=True):  # the same with any neighbours
            torch.testing.assert_close(one[0], every[1], rtol=1e-4, atol=1e-4)
    assert same(run(ts.remove(model), x), dense)


@every_tower
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    model, x = tower(name, dtype), images(dtype=dtype)
    dense = run(model, x)
    assert same(run(ts.apply(model, NOTHING), x), dense)
    reduced = run(ts.apply(ts.remove(model), "tome:r=20"), x)
    assert [part.dtype for part in reduced] == [part.dtype for part in dense]
    assert all(part.isfinite().all() for part in reduced)


@pytest.mark.parametrize("name", ["sam", "vitdet", "samvit, rotary"])
def test_tokens_that_are_left_attend_as_if_the_others_were_masked(name: str) -> None:
    """Dropped tokens are nobody's keys: the model's own blocks with a mask, in float64."""
    model, x = tower(name, torch.float64), images(1, torch.float64)
    located = family_of(model)
    blocks: list[Any] = located.family.blocks(located.owner)
    entered: list[Tensor] = []
    handle = blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    run(model, x)
    handle.remove()
    ts.apply(model, "topk:keep=0.6:sites=[1]")
    kept = ts.trace(model, x).tokens
    assert kept is not None
    gone = torch.ones(100, dtype=torch.bool)
    gone[kept.rep[0]] = False
    assert gone.sum() == 40
    ts.remove(model)
    # Block by block as written, with minus infinity on the logits of keys that are gone.
    maps, family = entered[0], located.family
    form = family.form(blocks[0], maps)
    assert form is not None
    for number, block in enumerate(blocks):
        shape = form.taken(maps)
        hidden = gone if number > 1 else torch.zeros_like(gone)
        maps = _masked_block(family, block, maps, hidden)
        assert form.taken(maps).shape == shape.shape
    torch.testing.assert_close(kept.patches[0], form.taken(maps)[0][kept.rep[0]], rtol=1e-9, atol=1e-9)


def _masked_block(family: Any, block: Any, maps: Tensor, hidden: Tensor) -> Tensor:
    """What ``block`` answers where no token attends to those ``hidden`` (N,)."""
    size = block.window_size
    mask = F.pad(hidden.view(1, 10, 10, 1).double(), (0, 0, 0, -10 % size if size else 0, 0, -10 % size if size else 0))
    if size:
        high, wide = mask.shape[1] // size, mask.shape[2] // size
        mask = mask.view(1, high, size, wide, size, 1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 1, 1, size * size)
    else:
        mask = mask.view(1, 1, 1, -1)
    offset = torch.zeros_like(mask).masked_fill(mask > 0, -torch.inf)
    real, softmax = F.scaled_dot_product_attention, Tensor.softmax

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **others: Any) -> Tensor:
        heads = 3 if q.dim() == 3 else 1
        own = offset.squeeze(1).repeat_interleave(heads, dim=0) if q.dim() == 3 else offset
        return real(q, k, v, attn_mask=own if attn_mask is None else attn_mask + own, **others)

    def softened(logits: Tensor, *args: Any, **others: Any) -> Tensor:
        return softmax(logits + offset.squeeze(1).repeat_interleave(3, dim=0), *args, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(Tensor, "softmax", softened)
        with torch.no_grad():
            return family.opened(block(maps))  # type: ignore[no-any-return]


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, **_: Any) -> Tensor:
    logits = q @ k.transpose(-1, -2) + (0 if bias is None else bias)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("few", [0, 8])
def test_windows_with_a_border_are_a_mask(seed: int, biased: bool, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windowed, "FEW", few)  # 0: numbers of tokens are rounded up
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 5, (2, 37), generator=generator) + torch.tensor([[0], [5]])
    beyond = torch.randint(0, 5, (2, 6), generator=generator) + torch.tensor([[0], [5]])
    q, k, v = torch.randn(3, 2, 3, 37, 4, generator=generator, dtype=torch.float64)
    keys, values = torch.randn(2, 2, 3, 6, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, 1, 1, 37, generator=generator, dtype=torch.float64) if biased else None
    apart = (numbers.unsqueeze(2) != torch.cat([numbers, beyond], dim=1).unsqueeze(1)).unsqueeze(1)
    mask = torch.zeros(2, 1, 37, 43, dtype=torch.float64).masked_fill(apart, -torch.inf)
    mask = mask if bias is None else mask + F.pad(bias, (0, 6))
    expected = plain(q, torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2), mask)
    rows = WindowRows(numbers, Border(beyond, keys, values))
    torch.testing.assert_close(rows.attend(plain, q, k, v, bias), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as in graphs: one call with a mask
    torch.testing.assert_close(rows.attend(plain, q, k, v, bias, scale=1.0), expected)


@pytest.mark.parametrize("length", [7, 12])
def test_relative_positions_as_channels_are_a_bias(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    rows, columns = torch.randint(0, 4, (2, 2, length), generator=generator)
    q, k, v = torch.randn(3, 2, 3, length, 8, generator=generator, dtype=torch.float64)
    table = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64)
    expected = q @ k.transpose(2, 3) * 0.3
    for axis, places in zip(table, (rows, columns), strict=True):
        distance = places.unsqueeze(2) - places.unsqueeze(1) + 3
        expected = expected + torch.einsum("bhic,bijc->bhij", q, axis[distance])
    pairs = [(along_axis(q, axis, places, 4), places) for axis, places in zip(table, (rows, columns), strict=True)]
    query, key, value = folded(q, k, v, 0.3, pairs)
    torch.testing.assert_close(query @ key.transpose(2, 3), expected)
    assert query.shape[3] % 8 == 0 and torch.equal(value[..., :8], v) and not value[..., 8:].any()


def test_a_stretched_table_is_the_models_own() -> None:
    model: Any = _built("vitdet")
    from transformers.models.vitdet.modeling_vitdet import get_rel_pos

    table, side = model.encoder.layer[1].attention.rel_pos_h, 13
    query = torch.randn(1, 1, side, table.shape[1])
    places = torch.arange(side).unsqueeze(0)
    expected = torch.einsum("bhic,ijc->bhij", query, get_rel_pos(side, side, table))
    torch.testing.assert_close(along_axis(query, table, places, side), expected)


@pytest.mark.parametrize("name", ["vitdet", "samvit"])
def test_maps_of_other_sizes(name: str) -> None:
    model = tower(name)
    x = torch.randn(2, 3, 128, 224)
    dense = run(model, x)
    assert same(run(ts.apply(model, NOTHING), x), dense)
    reduced = run(ts.apply(ts.remove(model), "tome:r=20"), x)
    assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)


def test_masks_of_sam_read_the_whole_map() -> None:
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": SIDE, "window_size": 4}
    config = SamConfig(
        vision_config={**small, "global_attn_indexes": [1, 3], "mlp_dim": 96, "output_channels": 256},
        prompt_encoder_config={"image_size": SIDE},
    )
    model: Any = liven(SamModel(config)).eval()
    points = torch.tensor([[[[40.0, 50.0]]]] * 2)
    with torch.no_grad():
        dense = model(pixel_values=images(), input_points=points)
        exact = ts.apply(model, NOTHING)(pixel_values=images(), input_points=points)
        reduced = ts.apply(ts.remove(model), "tome:r=20")(pixel_values=images(), input_points=points)
    assert torch.equal(exact.pred_masks, dense.pred_masks) and torch.equal(exact.iou_scores, dense.iou_scores)
    assert reduced.pred_masks.shape == dense.pred_masks.shape and not torch.equal(reduced.pred_masks, dense.pred_masks)


def test_hidden_states_and_feature_maps_are_maps() -> None:
    from transformers import VitDetBackbone, VitDetConfig

    torch.manual_seed(0)
    config = VitDetConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=SIDE, patch_size=PATCH, window_size=4,
        window_block_indices=[0, 2], out_features=["stage2", "stage4"],
    )  # fmt: skip
    model: Any = VitDetBackbone(config).eval()
    dense = model(images()).feature_maps
    reduced = ts.apply(model, "tome:r=20:sites=[2]")(images()).feature_maps  # type: ignore[operator]
    assert torch.equal(reduced[0], dense[0]) and reduced[1].shape == dense[1].shape
    assert not torch.equal(reduced[1], dense[1]) and type(reduced[0]) is type(reduced[1]) is Tensor
    timms: Any = tower("samvit")
    whole = timms.forward_intermediates(images(), intermediates_only=True)
    found = ts.apply(timms, "tome:r=20:sites=[2]").forward_intermediates(images(), intermediates_only=True)  # type: ignore[operator]
    assert [part.shape for part in found] == [part.shape for part in whole]
    assert torch.equal(found[1], whole[1]) and not torch.equal(found[2], whole[2])


def test_a_block_with_convolutions_behind_it_is_refused() -> None:
    model = of_transformers("vitdet", "VitDetConfig", "VitDetModel", "eager", residual_block_indices=[1])
    with pytest.raises(ts.RefusedError, match=r"end in convolutions over the whole map \(residual_block_indices"):
        ts.apply(model, "tome:r=8")


def test_an_attention_that_is_another_is_refused() -> None:
    model: Any = tower("sam")
    attention = model.vision_encoder.layers[1].attn
    attention.scale, heads = 1.0, type(attention).forward

    class Doubled(type(attention)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> Any:
            out, maps = heads(self, hidden_states * 2)
            return out, maps

    attention.__class__ = Doubled
    with pytest.raises(ts.RefusedError, match="attends otherwise by its parts, which differ by"):
        ts.apply(model, "tome:r=8")


def test_gradients_reach_every_parameter() -> None:
    model: Any = tower("sam").train()
    ts.apply(model, "tome:r=20")
    sum(part.square().mean() for part in tensors(model(images()))).backward()  # type: ignore[union-attr]
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("spec", [None, "random:keep=0.6:sites=[0,1,2]", "tome:r=15:sites=[0,2]"])
@pytest.mark.parametrize("name", ["sam3", "samvit, rotary"])  # without relative positions, which cost besides
def test_macs_counted_in_windows_are_macs_run(name: str, spec: str | None) -> None:
    model, x = tower(name), images(1)
    if spec is not None:
        ts.apply(model, spec)
    mode = Run()
    with mode:
        run(model, x)
    # Both windowed blocks run layers on the 44 places beyond the border: all in dense windows, with what attends there,
    # and by their parts those of queries, keys and values.
    layers, attends = (4, 2 * 48 * 16) if spec is None else (3, 0)
    beyond = 2 * 44 * (layers * 48 * 48 + attends)
    assert count(model, x).total + beyond == pytest.approx(mode.macs, rel=1e-6)


@pytest.mark.parametrize("name", ["samvit", pytest.param("samvit, rotary", marks=pytest.mark.slow)])
def test_graphs_attend_in_windows_by_one_call_with_a_mask(name: str) -> None:
    model, x = tower(name), images()
    ts.apply(model, "tome:r=20+bat:keep=0.7:sites=[1]")
    (wanted,) = run(model, x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(run(exported, x)[0], wanted, rtol=1e-4, atol=1e-4)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x)[0], wanted, rtol=1e-4, atol=1e-4)


def lengths_of(model: nn.Module, spec: str, x: Tensor) -> list[torch.Size]:
    """The shapes of what the blocks of an oracle hand on."""
    reduced = ts.apply(copy.deepcopy(model), spec)
    free, seen = oracle(model, count(reduced, x)), []
    for block in (part for part in free.modules() if isinstance(part, OracleBlock)):
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    run(free, x)
    return seen


@pytest.mark.parametrize("name", ["samvit", "sam"])
def test_an_oracle_runs_on_as_few_tokens_and_gives_the_map_back(name: str) -> None:
    shapes = lengths_of(tower(name), "tome:r=20", images())
    assert shapes == [(2, 80, 48), (2, 60, 48), (2, 40, 48), (2, 10, 10, 48)]


def test_a_plan_of_blocks_in_windows_is_refused() -> None:
    with pytest.raises(ts.RefusedError, match=r"as a whole in blocks \[0, 2\] of VisionTransformerSAM: measure"):
        make_plan(tower("samvit"), "tome", target_speedup=1.2, batch_size=1, example=images(1))
