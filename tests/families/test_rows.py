"""Towers that are called with more than images: rows of several sizes, windows, clips, padding, and what is refused."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import NAMES, TOWERS, Run, inputs, tensors, tower
from tokensieve.attention.pairs import Pairs
from tokensieve.attention.tap import Tap
from tokensieve.families._family import taken_apart
from tokensieve.families._locate import family_of
from tokensieve.families.hf_apart import REASONS
from tokensieve.measure.macs import count

transformers = pytest.importorskip("transformers")
NOTHING = "tome:r=0+topk:keep=1.0:sites=[1]"
KINDS = ("tome:r=3", "topk:keep=0.5:sites=[1]", "ats:sites=[1]")
GRIDS = ((8, 8), (4, 12), (8, 8))
POSITIONED = ("hf-beit", "hf-dinov3", "hf-gemma4", "hf-llama4", "hf-mlcd", "hf-step3", "hf-vjepa2", "timm-eva")
CLIPS = ("cosmos3-edge", "hy-v4", "kimi", "minimax-m3", "muse-glimmer", "muse-spark", "paddleocr", "video-llama3")


def run(model: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(**given))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def row(model: Any, *grids: tuple[int, ...]) -> dict[str, Any]:
    """What a tower of packed images is called with for images, or clips, of these (frames, rows, columns)."""
    example = model.example()
    given = {name: part[:1].repeat_interleave(len(grids), dim=0) for name, part in example.items()}
    patches = example["pixel_values"]
    one = patches.shape[2:] if patches.dim() == 5 else patches.shape[1:]
    count = sum(torch.tensor(grid).prod().item() for grid in grids)
    values = torch.randn(int(count), *one, generator=torch.Generator().manual_seed(1))
    given["pixel_values"] = values.unsqueeze(0) if patches.dim() == 5 else values
    given["grid_thw"] = torch.tensor([(1, *grid)[-3:] for grid in grids])
    return given


def alone(given: dict[str, Any], number: int) -> dict[str, Any]:
    """The same for one of the images."""
    counts = given["grid_thw"].prod(dim=1).tolist()
    axis = 1 if given["pixel_values"].dim() == 5 else 0
    one = {name: part[number : number + 1] for name, part in given.items()}
    return {**one, "pixel_values": given["pixel_values"].split(counts, dim=axis)[number]}


@pytest.mark.parametrize("name", TOWERS.get("hf-rows", ()))
def test_images_of_several_sizes_in_a_row(name: str) -> None:
    whole: Any = tower("hf-rows", name)
    model, given = whole.tower, row(whole, *GRIDS)
    dense = run(model, given)
    assert same(run(ts.apply(model, NOTHING), given), dense)
    for spec in KINDS:
        reduced = run(ts.apply(ts.remove(model), spec), given)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        images = [run(model, alone(given, number)) for number in range(len(GRIDS))]
        for every, *parts in zip(reduced, *images, strict=True):
            if every.shape[-2] == sum(part.shape[-2] for part in parts):
                torch.testing.assert_close(torch.cat(parts, dim=-2), every, rtol=1e-4, atol=1e-4)
    assert same(run(ts.remove(model), given), dense)


@pytest.mark.parametrize("name", CLIPS)
def test_clips(name: str) -> None:
    if "hf-rows" not in TOWERS:
        pytest.skip("transformers is not installed")
    whole: Any = tower("hf-rows", name)
    model, given = whole.tower, row(whole, (3, 4, 4))
    dense = run(model, given)
    assert same(run(ts.apply(model, NOTHING), given), dense)
    reduced = run(ts.apply(ts.remove(model), "tome:r=3"), given)
    assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
    # All frames of some attend to one another and lose tokens together; in others each frame is an image.
    attended = ts.trace(model, given).stages[1].attended
    assert attended == (45 if name in ("kimi", "minimax-m3") else 13)


def test_pixtral_takes_images_of_several_sizes() -> None:
    if "hf-pixtral" not in TOWERS:
        pytest.skip("transformers is not installed")
    whole: Any = tower("hf-pixtral", "pixtral")
    model, images = whole.tower, inputs(whole)
    sizes = torch.tensor([[128, 128], [64, 96], [128, 128]])
    given = {"pixel_values": images, "image_sizes": sizes}
    dense = run(model, given)
    assert same(run(ts.apply(model, NOTHING), given), dense)
    for spec in KINDS:
        reduced = run(ts.apply(ts.remove(model), spec), given)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        parts = [
            run(model, {"pixel_values": image[None, :, :height, :width]})[0]
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), reduced[0], rtol=1e-4, atol=1e-4)
    assert same(run(ts.remove(model), given), dense)


def test_gemma_takes_padded_images() -> None:
    if "hf-gemma4" not in TOWERS:
        pytest.skip("transformers is not installed")
    whole: Any = tower("hf-gemma4", "gemma4")
    model, positions = whole.tower, whole.example()["pixel_position_ids"].repeat(2, 1, 1)
    positions[1] = -1
    positions[1, :54] = torch.cartesian_prod(torch.arange(6), torch.arange(9)).flip(1)
    given = {"pixel_values": inputs(whole, 2), "pixel_position_ids": positions}
    dense = run(model, given)
    assert same(run(ts.apply(model, NOTHING), given), dense)
    for spec in KINDS:
        reduced = run(ts.apply(ts.remove(model), spec), given)
        assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
        parts = [run(model, {name: part[i : i + 1] for name, part in given.items()})[0] for i in range(2)]
        torch.testing.assert_close(torch.cat(parts), reduced[0], rtol=1e-4, atol=1e-4)


def test_windows_of_a_row() -> None:
    config = transformers.MuseSparkVisionConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, patch_size=16,
        pos_emb_height=4, pos_emb_width=4, layer_types=["window_attention", "full_attention"] * 2
    )  # fmt: skip
    torch.manual_seed(0)
    model = liven(transformers.MuseSparkVisionModel(config)).eval()
    width = model.patch_embedder.patch_embedding.in_features
    patches = torch.randn(2 * 96, width, generator=torch.Generator().manual_seed(1))
    given = {"pixel_values": patches, "grid_thw": torch.tensor([[1, 8, 12]] * 2)}
    dense = run(model, given)
    assert same(run(ts.apply(model, "tome:r=0+topk:keep=1.0:sites=[1]"), given), dense)
    for spec in ("tome:r=10", "topk:keep=0.5:sites=[1]", "ats:sites=[1]"):
        (reduced,) = run(ts.apply(ts.remove(model), spec), given)
        assert reduced.shape == dense[0].shape and not torch.equal(reduced, dense[0])
        (one,) = run(model, {"pixel_values": patches[96:], "grid_thw": given["grid_thw"][:1]})
        torch.testing.assert_close(one, reduced[len(one) :], rtol=1e-4, atol=1e-4)
    with pytest.raises(ts.TokensieveError, match=r"topk reads the attention of an image in block 2, .* among \[1, 3\]"):
        ts.apply(ts.remove(model), "topk:sites=[2]")


class Seen(Exception):
    """Raised out of a block with what it was given."""


@pytest.mark.parametrize(("family", "name"), [entry for entry in NAMES if entry[0] in POSITIONED])
def test_positions_follow_their_tokens(family: str, name: str) -> None:
    model = tower(family, name)
    located = family_of(model)
    layout, block = located.family.layout(located.owner), located.family.blocks(located.owner)[0]

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise Seen(args, kwargs)

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(Seen) as seen:
        model(inputs(model, 2))
    handle.remove()
    x, args, kwargs = taken_apart(*seen.value.args)
    given = located.family.keywords(block, args, kwargs)

    form = located.family.form(block, x)

    def attended(x: Tensor, given: dict[str, Any], positions: Tensor | None) -> Tensor:
        tap = Tap()
        tap.pairs = Pairs(positions, layout.prefix) if located.family.biased else None
        with torch.no_grad():
            return located.family.tapped(block, x, tap, **given)

    dense = attended(x, given, None)
    dense, x = (dense, x) if form is None else (form.taken(dense), form.taken(x))
    order = torch.stack([torch.randperm(x.shape[1] - layout.prefix) for _ in range(len(x))])
    places = torch.cat([torch.arange(layout.prefix).expand(len(x), -1), order + layout.prefix], dim=1)
    images = torch.arange(len(x)).unsqueeze(1)
    placed = located.family.reindex(block, given, order, layout.prefix)
    torch.testing.assert_close(attended(x[images, places], placed, order), dense[images, places], rtol=1e-4, atol=1e-4)


def test_experts_of_a_packed_tower() -> None:
    config = transformers.Dots3NoteVisionConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, patch_size=16,
        adapter_in_dim=48, adapter_out_dim=32, mlp_layer_types=["dense", "sparse", "sparse", "dense"],
        moe_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, per_layer_config={}
    )  # fmt: skip
    torch.manual_seed(0)
    model = liven(transformers.Dots3NoteVisionModel(config)).eval()
    weight = next(p for p in model.patch_embed.parameters() if p.dim() > 1)
    given = {"pixel_values": torch.randn(192, weight[0].numel()), "grid_thw": torch.tensor([[1, 8, 12]] * 2)}
    dense = run(model, given)
    assert same(run(ts.apply(model, NOTHING), given), dense)
    reduced = run(ts.apply(ts.remove(model), "tome:r=3"), given)
    assert [part.shape for part in reduced] == [part.shape for part in dense] and not same(reduced, dense)
    for part in model.modules():
        if type(part).__name__ == "Dots3NoteExperts":
            part.config._experts_implementation = "eager"  # by layers, which are counted
    macs = Run()
    with macs:
        run(model, given)
    assert 2 * count(model, given).total == macs.macs  # of two images


MODELS = {
    "deepseek_ocr2": "DeepseekOcr2VisionEncoder",
    "groupvit": "GroupViTVisionModel",
    "inkling2": "Inkling2VisionModel",
    "lfm3_vl": "Lfm3VlVisionModel",
    "mllama": "MllamaVisionModel",
    "phi4_multimodal": "Phi4MultimodalVisionModel",
    "seggpt": "SegGptModel",
    "x_clip": "XCLIPVisionModel",
}


@pytest.mark.parametrize("block", REASONS)
def test_what_cannot_be_reduced_says_why(block: str) -> None:
    folder = block.split(".")[2]
    module = importlib.import_module(block.rpartition(".")[0])
    kind = getattr(module, MODELS[folder])
    with torch.device("meta"):
        model = kind(kind.config_class())
    with pytest.raises(ts.RefusedError) as refused:
        ts.apply(model, "tome:r=3")
    assert REASONS[block] in str(refused.value) and "\n" not in str(refused.value)
