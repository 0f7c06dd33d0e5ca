"""The towers that people use: exact where nothing is removed, reduced where something is, whole where they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import DEFAULTS
from tests.helpers.towers import NAMES, TOWERS, Run, answers, inputs, tower
from tokensieve.families._locate import family_of
from tokensieve.measure.macs import count

every_tower = pytest.mark.parametrize(("family", "name"), NAMES)
NOTHING = "tome:r=0+bat:keep=1.0"
KINDS = ("tome:r=3", "bat:keep=0.5:sites=[0]", "tosa:keep=0.5:score=own", "evit:keep=0.5:sites=[0]", "ats:sites=[0]")
FIRST = {next(entry for entry in NAMES if entry[0] == family) for family in TOWERS}
first_tower = pytest.mark.parametrize(  # the others of a family in the slow suite
    ("family", "name"), [entry if entry in FIRST else pytest.param(*entry, marks=pytest.mark.slow) for entry in NAMES]
)
SHUFFLED = ("vit-mae",)  # at random, image by image


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_tower
def test_nothing_removed_is_exact(family: str, name: str) -> None:
    model = tower(family, name)
    assert family_of(model).family.name == family
    x = inputs(model)
    dense = answers(model, x)
    assert same(answers(ts.apply(model, NOTHING), x), dense)
    assert same(answers(ts.remove(model), x), dense)


@first_tower
@pytest.mark.parametrize("spec", KINDS)
def test_every_kind_of_decision(family: str, name: str, spec: str) -> None:
    model = tower(family, name)
    x = inputs(model)
    dense = answers(model, x)
    reduced = answers(ts.apply(model, spec), x)
    assert [part.shape for part in reduced] == [part.shape for part in dense]
    assert all(part.isfinite().all() for part in reduced if part.is_floating_point()) and not same(reduced, dense)
    if name not in SHUFFLED:
        # An image's answer is the same in any batch, with any neighbours.
        for number in range(len(x)):
            for one, whole in zip(answers(model, x[number : number + 1]), reduced, strict=True):
                if one.dim() and one.shape[0] == 1 and whole.shape[0] == len(x):
                    torch.testing.assert_close(one[0], whole[number], rtol=1e-4, atol=1e-4)
    assert same(answers(ts.remove(model), x), dense)


@every_tower
@pytest.mark.parametrize("config", [pytest.param(name, marks=pytest.mark.slow) for name in DEFAULTS])
def test_every_method(family: str, name: str, config: str) -> None:
    model = tower(family, name)
    x = inputs(model, 2)
    dense = answers(model, x)
    try:
        ts.apply(model, DEFAULTS[config])
    except ts.TokensieveError as error:
        assert "\n" not in str(error)
        return
    try:
        reduced = answers(model, x)
    except ts.TokensieveError as error:
        assert "\n" not in str(error) and config in str(error)
        return
    assert [part.shape for part in reduced] == [part.shape for part in dense]
    assert all(part.isfinite().all() for part in reduced if part.is_floating_point())
    assert same(answers(ts.remove(model), x), dense)


@every_tower
@pytest.mark.parametrize("spec", ["tome:r=3", "bat:keep=0.5:sites=[0]"])
def test_macs_counted_are_macs_run(family: str, name: str, spec: str) -> None:
    if family in ("hf-eomt", "hf-vjepa2") or name == "attentive":
        pytest.skip("transposed convolutions and multi-head layers of the head are counted in another way")
    model = ts.apply(tower(family, name), spec)
    x = inputs(model, 1)
    run, biases = Run(), Run()
    with run, torch.no_grad():
        model(x)
    with biases:  # what makes relative positions costs the same whatever the tokens, and is not counted
        located = family_of(model)
        for part in (part for block in located.family.blocks(located.owner) for part in block.modules()):
            if hasattr(part, "get_bias"):
                part.get_bias()  # type: ignore[operator]
    assert count(model, x).total == pytest.approx(run.macs - biases.macs, rel=1e-6)


@pytest.mark.parametrize(("family", "name"), [entry for entry in NAMES if entry[0].startswith("hf")])
def test_hidden_states_are_whole(family: str, name: str) -> None:
    model = tower(family, name)
    x = inputs(model, 2)
    torch.manual_seed(3)
    dense: Any = model(x, output_hidden_states=True)
    ts.apply(model, "bat:keep=0.5:sites=[1]")
    torch.manual_seed(3)
    reduced: Any = model(x, output_hidden_states=True)
    wanted = dense.hidden_states
    if wanted is None:
        assert reduced.hidden_states is None
        return
    assert len(reduced.hidden_states) == len(wanted)
    for number, (one, other) in enumerate(zip(reduced.hidden_states, wanted, strict=True)):
        assert type(one) is Tensor and one.shape == other.shape
        assert torch.equal(one, other) == (number < 2), number


def test_a_text_tower_stays_as_it_is_and_pipelines_run() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 16},
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    ids, x = torch.randint(3, 99, (2, 8)), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        dense = model(input_ids=ids, pixel_values=x)
        reduced = ts.apply(model, "tome:r=3")(input_ids=ids, pixel_values=x)
    assert torch.equal(dense.text_embeds, reduced.text_embeds)
    assert not torch.equal(dense.image_embeds, reduced.image_embeds)
    assert type(model.text_model.encoder.layers[0]) is transformers.models.clip.modeling_clip.CLIPEncoderLayer
    ts.apply(ts.remove(model), "tome:r=3", probe={"input_ids": ids, "pixel_values": x})
    with pytest.raises(ts.TokensieveError, match="the model does not run on the probe"):
        ts.apply(ts.remove(model), "tome:r=3", probe={"input_ids": ids})


def test_positions_between_blocks_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=[64, 64])
    with pytest.raises(ts.RefusedError, match="adds position embeddings of all patches between its blocks"):
        ts.apply(transformers.YolosModel(config), "tome:r=3")


def test_sequences_before_images_are_refused() -> None:
    pytest.importorskip("open_clip")
    model: Any = tower("open-clip", "clip")
    for block in model.transformer.resblocks:
        block.attn = nn.MultiheadAttention(48, 3)
    with pytest.raises(ts.RefusedError, match="build it with batch_first=True"):
        ts.apply(model, "tome:r=3")


def test_maps_of_attention_are_refused() -> None:
    if "hf-clip" not in TOWERS:
        pytest.skip("transformers is not installed")
    model: Any = ts.apply(tower("hf-clip", "siglip"), "tome:r=3")
    with pytest.raises(ts.RefusedError, match="hands out no attentions"):
        model(inputs(model, 1), output_attentions=True)
    assert model(inputs(model, 1), output_attentions=False).last_hidden_state.shape[1] == 16


@pytest.mark.parametrize(("family", "path"), [("torchvision-vit", "self_attention"), ("open-clip", "attn")])
def test_hooks_on_an_attention_that_runs_by_its_parts_are_refused(family: str, path: str) -> None:
    if family not in TOWERS:
        pytest.skip("its package is not installed")
    model = tower(family, next(iter(TOWERS[family])))
    attention: Any = getattr(family_of(model).family.blocks(family_of(model).owner)[1], path)
    handle = attention.register_forward_hook(lambda *_: None)
    with pytest.raises(ts.RefusedError, match="hooks wait for a call of a MultiheadAttention"):
        ts.apply(model, "tome:r=3")
    handle.remove()
    ts.apply(model, "tome:r=3")
    attention.register_forward_hook(lambda *_: None)
    with pytest.raises(ts.RefusedError, match="hooks wait for a call of a MultiheadAttention"):
        answers(model, inputs(model, 1))
