"""Methods in front of the tower: the dense model on what they let in, with the rest hidden from its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokensieve as ts
from tests.helpers.generating import answers, over, whole
from tests.helpers.hidden import cut_logits, hidden_logits, kept
from tests.helpers.languages import IMAGE, LANGUAGES, PIXELS, SIDE, VIDEO, Inputs, Language, Row, image_of, named
from tests.helpers.pictures import repeated, smaller, smaller_pixels
from tokensieve.errors import RefusedError, TokensieveError

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("without_gradients")
EXACT = {"atol": 1e-9, "rtol": 0}
ROWS = (Row(1), Row(2, words=7, seed=1))
REFUSED = ("llava-next", "llava-onevision", "gemma3")
SMALLER = [one for one in LANGUAGES if one.name not in REFUSED]
SQUARE = ("internvl", "idefics3", "smolvlm")
PACKED = [one for one in LANGUAGES if one.name.startswith("qwen")]
ASKED = ("llava", "paligemma")  # towers that are told to interpolate


def soon(languages: list[Language], *names: str) -> list[Language]:
    """These hosts, of which those with these names stay in the fast part of the tests."""
    return [replace(one, fast=one.name in names) for one in languages]


def given_features(language: Language, dense: Any, inputs: Inputs, outputs: Any, keep: Tensor) -> Inputs:
    """The inputs of the dense model with features made before: those of ``outputs``, which stand where ``keep`` (B, L)
    is True of the placeholders, and zeros at the others."""
    at_images = inputs["input_ids"] == IMAGE
    stand = keep[at_images]

    def spread(parts: Any) -> Tensor:
        few = parts.flatten(0, 1) if isinstance(parts, Tensor) and parts.dim() == 3 else torch.cat(list(parts))
        return torch.zeros(len(stand), few.shape[1], dtype=few.dtype).masked_scatter(stand.unsqueeze(1), few)

    lengths = [int(row.sum()) for row in at_images if row.any()]
    all_features = spread(outputs.pooler_output)
    pooled = list(all_features.split(lengths))
    outputs.pooler_output = pooled if not isinstance(outputs.pooler_output, Tensor) else all_features.view(
        -1, language.features, all_features.shape[1]
    )  # fmt: skip
    if getattr(outputs, "deepstack_features", None) is not None:
        outputs.deepstack_features = [spread(level).split(lengths) for level in outputs.deepstack_features]
    text = {name: value for name, value in inputs.items() if name not in PIXELS or name == "image_grid_thw"}
    return {**text, "mm_encoder_outputs": {"image": outputs}}


def grid_places(keep: Tensor, visual: Tensor, of_image: Tensor) -> None:
    """Write ``of_image`` (N,) bool, for every image, to ``keep`` (B, L) where it is ``visual`` (B, L)."""
    number = int(visual.sum()) // len(of_image)
    keep[visual] = of_image.repeat(number)


def answer_as_dense(language: Language, model: Any, inputs: Inputs, dense: Any, features: Inputs, keep: Tensor) -> None:
    """Hold logits of a call, and those of 8 generated words, to the dense model that is given these features."""
    output, stays = model(**inputs), keep & inputs["attention_mask"].bool()
    assert torch.equal(kept(output.cache), keep)
    if not language.linear:
        expected = hidden_logits(language, dense, features, keep)
        torch.testing.assert_close(output.logits[stays], expected[stays], **EXACT)
    answer, steps = answers(model, inputs, 8)
    assert torch.equal(answer.sequences[:, : keep.shape[1]], inputs["input_ids"])
    full, held = whole(language, features, answer.sequences), kept(answer.cache)
    assert torch.equal(held[:, : keep.shape[1]], keep) and held[:, keep.shape[1] :].all()
    if not language.linear:
        torch.testing.assert_close(steps, hidden_logits(language, dense, full, held)[:, -8:], **EXACT)
    elif len(keep) == 1:
        expected = cut_logits(language, dense, full, held, anew=False)
        torch.testing.assert_close(steps, expected[:, -8:], atol=1e-5, rtol=0)


@over(soon(SMALLER, "llava", "qwen2.5-vl"))
def test_downsample_is_the_dense_model_on_smaller_pictures(language: Language) -> None:
    rows = ROWS[1:] if language.linear else ROWS
    inputs, dense = language.inputs(*rows), language.build()
    model = ts.apply(language.build(), "downsample:tokens=6")
    size = (2, 2) if language.name in SQUARE else (2, 3)
    # of 4 rows the middle of 2 is nearest to the second and the fourth, of 3 to the first, third and fourth
    here = torch.zeros(4, 4, dtype=torch.bool)
    here[torch.tensor([1, 3]).unsqueeze(1), torch.tensor([1, 3] if size[1] == 2 else [0, 2, 3])] = True
    visual = inputs["input_ids"] == IMAGE
    keep = torch.ones_like(visual)
    grid_places(keep, visual, here.flatten())
    told = {"interpolate_pos_encoding": True} if language.name in ASKED else {}
    outputs = dense.model.get_image_features(**smaller_pixels(language, rows, size), **told)
    features = given_features(language, dense, inputs, outputs, keep)
    answer_as_dense(language, model, inputs, dense, features, keep)


@contextmanager
def tower_hides(model: Any, sizes: Tensor, stays: Tensor) -> Iterator[None]:
    """The attention of a packed tower does not see the patches of features where ``stays`` (G,) is False; each sees
    itself."""
    tower = model.model.visual
    order = torch.arange(len(stays))
    if hasattr(tower, "window_size"):
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(sizes, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    seen = stays[order].repeat_interleave(4)
    start = 0
    own = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        nonlocal start
        length = query.shape[2]
        mask = seen[start : start + length].expand(length, -1) | torch.eye(length, dtype=torch.bool)
        start = (start + length) % len(seen)
        options.pop("attn_mask", None)
        return own(query, key, value, attn_mask=mask, **options)

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
    assert start == 0


@over(PACKED)
def test_pixelprune_is_the_dense_model_with_patches_hidden_in_tower_and_decoder(language: Language) -> None:
    rows = ROWS[1:] if language.linear else ROWS
    inputs, stay = repeated(rows, language)
    dense, model = language.build(), ts.apply(language.build(), "pixelprune:tau=0.02")
    stays = torch.cat(stay)
    assert len({int(one.sum()) for one in stay}) > 1 and not stays.view(-1, 16).all(dim=1).any()
    keep = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    keep[inputs["input_ids"] == IMAGE] = stays
    with tower_hides(dense, inputs["image_grid_thw"], stays):
        outputs = dense.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    outputs.pooler_output = [torch.cat(list(outputs.pooler_output))[stays]]
    if getattr(outputs, "deepstack_features", None) is not None:
        outputs.deepstack_features = [[torch.cat(list(level))[stays]] for level in outputs.deepstack_features]
    features = given_features(language, dense, inputs, outputs, keep)
    answer_as_dense(language, model, inputs, dense, features, keep)


@over(soon(SMALLER, "qwen2.5-vl"))
def test_nothing_left_out_is_the_dense_model(language: Language) -> None:
    inputs, dense = language.inputs(*ROWS), language.build()
    expected = dense(**inputs).logits
    packed = language.name.startswith("qwen")
    specs = ["downsample:keep=1.0", "pixelprune"] if packed else ["downsample:tokens=16"]
    for spec in specs:
        model = ts.apply(language.build(), spec)
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(ts.remove(model)(**inputs).logits, expected)


@over(soon(SMALLER, "smolvlm"))
def test_a_row_of_a_batch_answers_as_it_does_alone(language: Language) -> None:
    model = ts.apply(language.build(), "downsample:tokens=6")
    _, together = answers(model, language.inputs(*ROWS), 4)
    for number, row in enumerate(ROWS):
        _, alone = answers(model, language.inputs(row), 4)
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5 if language.linear else 1e-9, rtol=0)


@over([one for one in LANGUAGES if one.name in REFUSED])
def test_hosts_whose_features_do_not_follow_the_size(language: Language) -> None:
    model = language.build()
    with pytest.raises(RefusedError, match=r"cuts a picture into tiles|one number of features"):
        ts.apply(model, "downsample:tokens=6")
    assert not ts.is_applied(model)


@over(soon([one for one in LANGUAGES if one not in PACKED], "llava"))
def test_pixelprune_wants_patches_in_one_row(language: Language) -> None:
    with pytest.raises(RefusedError, match="cannot see less of a picture by pixelprune"):
        ts.apply(language.build(), "pixelprune")


@over(named(["qwen2.5-vl"]))
def test_an_input_method_composes_with_all_others(language: Language) -> None:
    inputs, stay = repeated((Row(1),), language)
    spec = "pixelprune:tau=0.02+random:keep=0.7:sites=[1]+visionzip:tokens=5:contextual=0.2+fastv:keep=0.5:layer=1"
    model = ts.apply(language.build(), spec)
    assert ts.spell(ts.applied(model)) == spec
    text = inputs["input_ids"].shape[1] - 16
    lengths = [layer.keys.shape[2] for layer in model(**inputs).cache.layers]
    assert int(stay[0].sum()) > 5 and lengths == [text + 5, text + 3, text + 3]
    # A method of the tower that removes nothing changes nothing.
    alone = ts.apply(language.build(), "pixelprune:tau=0.02")(**inputs).logits
    beside = ts.apply(language.build(), "pixelprune:tau=0.02+random:keep=1.0")(**inputs).logits
    torch.testing.assert_close(beside, alone, **EXACT)
    with pytest.raises(TokensieveError, match="downsample and pixelprune both act in front of the tower"):
        ts.apply(language.build(), "downsample:tokens=3+pixelprune")


def test_methods_behind_see_the_smaller_picture(tmp_path: Path) -> None:
    (language,) = named(["llava"])
    inputs, dense = language.inputs(Row(1)), language.build()
    model = ts.apply(language.build(), "downsample:tokens=9+visionzip:tokens=4")
    assert (~kept(model(**inputs).cache)).sum() == 16 - 4
    ts.save(model, tmp_path / "saved")
    loaded: Any = ts.load(tmp_path / "saved").double()
    assert ts.applied(loaded) == ts.applied(model)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    assert torch.equal(ts.remove(model)(**inputs).logits, dense(**inputs).logits)


def test_compact_positions_are_counted_anew() -> None:
    (language,) = named(["llava"])
    inputs = language.inputs(Row(1))
    model, dense = ts.apply(language.build(), "downsample:tokens=4:positions=compact"), language.build()
    output = model(**inputs)
    keep = kept(output.cache)
    outputs = dense.model.get_image_features(
        **smaller_pixels(language, (Row(1),), (2, 2)), interpolate_pos_encoding=True
    )
    features = given_features(language, dense, inputs, outputs, keep)
    expected = cut_logits(language, dense, features, keep, anew=True)
    torch.testing.assert_close(output.logits[keep], expected[0], **EXACT)


@over(named(["qwen2.5-vl", "mistral3"]))
def test_pictures_of_several_sizes(language: Language) -> None:
    rows = (Row(1, size=(SIDE, 96)), Row(1, words=2, seed=2, size=(32, SIDE)))
    inputs, model, dense = language.inputs(*rows), ts.apply(language.build(), "downsample:keep=0.5"), language.build()
    output = model(**inputs)
    assert (~kept(output.cache)).sum(dim=1).tolist() == [24 - 12, 8 - 4]  # 3 × 4 of 4 × 6, 2 × 2 of 2 × 4
    small = [smaller(image_of(row, 0), *size) for row, size in zip(rows, ((3, 4), (2, 2)), strict=True)]
    outputs = dense.model.get_image_features(**language.pixels([[image] for image in small]))
    keep = kept(output.cache)
    features = given_features(language, dense, inputs, outputs, keep)
    expected = hidden_logits(language, dense, features, keep)
    stays = keep & inputs["attention_mask"].bool()
    torch.testing.assert_close(output.logits[stays], expected[stays], **EXACT)


@pytest.mark.parametrize("spec", ["downsample:tokens=8", "pixelprune:tau=0.02"])
@over(soon(named(["qwen2.5-vl", "qwen3-vl"]), "qwen2.5-vl"))
def test_frames_of_a_video_each_lose_their_own(language: Language, spec: str) -> None:
    image, stay = repeated((Row(2),), language)
    inputs = image | {"input_ids": image["input_ids"].clone()}
    names = {"pixel_values": "pixel_values_videos", "image_grid_thw": "video_grid_thw"}
    given = {names[name]: inputs.pop(name) for name in names}
    places = (inputs["input_ids"] == IMAGE).nonzero()[:, 1]
    inputs["input_ids"][0, places] = VIDEO
    inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == VIDEO)
    if language.name == "qwen2.5-vl":  # one video of two frames; Qwen3-VL has a frame a video in its prompts
        given["video_grid_thw"] = torch.tensor([[2, 8, 8]])
        inputs = {name: value[:, _one_video(places, value)] for name, value in inputs.items()}
    model = ts.apply(language.build(), spec)
    keep = kept(model(**inputs, **given).cache)
    if spec.startswith("pixelprune"):
        expected = torch.cat(stay)
    else:
        size = (2, 2) if language.name == "qwen2.5-vl" else (2, 3)
        frame = torch.zeros(4, 4, dtype=torch.bool)
        frame[torch.tensor([1, 3]).unsqueeze(1), torch.tensor([1, 3] if size[1] == 2 else [0, 2, 3])] = True
        expected = frame.flatten().repeat(2)
    assert torch.equal(keep[inputs["input_ids"] == VIDEO], expected)
    frames = ts.remove(model).model.get_video_features(**given).pooler_output
    assert sum(map(len, frames)) == len(expected)


def _one_video(places: Tensor, value: Tensor) -> Tensor:
    """(L,) bool: all tokens but the word between two images."""
    between = torch.arange(value.shape[1]) == places[16] - 1
    return ~between


def test_what_is_worked_out_of_whole_pictures_is_refused() -> None:
    (language,) = named(["qwen2.5-vl"])
    inputs, model = language.inputs(Row(1)), ts.apply(language.build(), "downsample:tokens=6")
    given = {name: inputs[name] for name in PIXELS if name in inputs}
    with pytest.raises(RefusedError, match="image_cu_seqlens says of whole pictures"):
        model.model.get_image_features(**given, image_cu_seqlens=torch.tensor([0, 64], dtype=torch.int32))
    with pytest.raises(RefusedError, match="expected a row for each patch"):
        model.model.get_image_features(given["pixel_values"][:-4], given["image_grid_thw"])
    with pytest.raises(RefusedError, match="leave return_dict out"):
        model.model.get_image_features(**given, return_dict=False)


def test_a_copy_of_features_does_not_say_what_left() -> None:
    (language,) = named(["llava"])
    inputs, model = language.inputs(Row(1)), ts.apply(language.build(), "downsample:tokens=6")
    outputs = model.model.get_image_features(inputs["pixel_values"])
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    expected = model(**inputs).logits
    assert torch.equal(model(**text, mm_encoder_outputs={"image": outputs}).logits, expected)
    copied = type(outputs)(**outputs)
    with pytest.raises(RefusedError, match="does not say which features downsample has left out"):
        model(**text, mm_encoder_outputs={"image": copied})


def test_a_tower_that_gives_another_number_is_refused() -> None:
    (language,) = named(["llava"])
    model, inputs = language.build(), language.inputs(Row(1))
    model.config.vision_config.patch_size = 32  # says of the tower what is not so
    ts.apply(model, "downsample:tokens=2")
    with pytest.raises(RefusedError, match="does not follow the size of the picture"):
        model(**inputs)
