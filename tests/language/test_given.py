"""What a model with fewer image tokens is called with (sizes, features, masks, labels), and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.generating import answers, over, reduced, whole
from tests.helpers.hidden import hidden_logits, kept, positions
from tests.helpers.languages import IMAGE, LANGUAGES, PIXELS, SIDE, VIDEO, Language, Row, named
from tokensieve.language.cache import record_of
from tokensieve.methods.language.divprune import DivPrune
from tokensieve.methods.language.prefix_controls import PrefixGrid
from tokensieve.methods.language.visionzip import VisionZip

pytest.importorskip("transformers")

FIVE = DivPrune(tokens=5)
EXACT = {"atol": 1e-9, "rtol": 0}
OF_SIZES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "mistral3")


@over(named(OF_SIZES))
@torch.no_grad()
def test_images_of_several_sizes(language: Language) -> None:
    rows = (Row(1, size=(SIDE, 96)), Row(2, words=3, seed=1), Row(1, words=2, seed=2, size=(32, SIDE)))
    inputs = language.inputs(*rows)
    answer, steps = answers(reduced(language, PrefixGrid(keep=0.25)), inputs, 4)
    keep = kept(answer.cache)
    assert (~keep).sum(dim=1).tolist() == [24 - 6, 2 * (16 - 4), 8 - 2]
    expected = hidden_logits(language, language.build(), whole(language, inputs, answer.sequences), keep)
    torch.testing.assert_close(steps, expected[:, -4:], **EXACT)


@over(named(("qwen2.5-vl", "qwen3-vl")))
@torch.no_grad()
def test_a_video_beside_two_images(language: Language) -> None:
    inputs = language.inputs(Row(3))
    ids = inputs["input_ids"].clone()
    ids[0, (ids == IMAGE).nonzero()[32:, 1]] = VIDEO
    inputs |= {"input_ids": ids, "mm_token_type_ids": inputs["mm_token_type_ids"] + (ids == VIDEO)}
    for name, video in (("pixel_values", "pixel_values_videos"), ("image_grid_thw", "video_grid_thw")):
        first, second, inputs[video] = inputs[name].chunk(3)
        inputs[name] = torch.cat([first, second])
    model, dense = reduced(language, FIVE), language.build()
    output = model(**inputs)
    keep = kept(output.cache)
    assert [int(keep[ids == token].sum()) for token in (IMAGE, VIDEO)] == [10, 5]
    torch.testing.assert_close(output.logits[keep], hidden_logits(language, dense, inputs, keep)[keep], **EXACT)
    answer, steps = answers(model, inputs, 4)
    expected = hidden_logits(language, dense, whole(language, inputs, answer.sequences), kept(answer.cache))
    torch.testing.assert_close(steps, expected[:, -4:], **EXACT)


@over(LANGUAGES)
@torch.no_grad()
def test_a_call_without_images_is_the_dense_models(language: Language) -> None:
    inputs = language.inputs(Row(0), Row(0, words=9, seed=1))
    dense, model = language.build(), reduced(language, FIVE)
    model(**language.inputs(Row(1)))
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)
    assert record_of(model(**inputs).cache) is None


@over(LANGUAGES)
@torch.no_grad()
def test_features_made_before(language: Language) -> None:
    model, inputs = reduced(language, VisionZip(tokens=6) if language.reads_tower else FIVE), language.inputs(Row(2))
    expected = model(**inputs).logits
    given = {name: inputs[name] for name in PIXELS if name in inputs}
    inputs = {name: value for name, value in inputs.items() if name not in given or name == "image_grid_thw"}
    outputs = model.model.get_image_features(**given)
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": outputs}).logits, expected)


@over(LANGUAGES)
@torch.no_grad()
def test_decoding_step_by_step(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    answer, steps = answers(model, inputs, 4)
    output, given = model(**inputs), inputs
    for step in range(1, 4):
        token = answer.sequences[:, inputs["input_ids"].shape[1] + step - 1 :][:, :1]
        given = language.longer(given, token)
        output = model(input_ids=token, attention_mask=given["attention_mask"], cache=output.cache)
        torch.testing.assert_close(output.logits[:, 0], steps[:, step], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_tuple_is_given_where_one_is_asked_for() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    logits, *_ = model(**inputs, return_dict=False)
    assert torch.equal(logits, model(**inputs).logits)


@torch.no_grad()
def test_hidden_states_have_every_token() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    output = model(**inputs, output_hidden_states=True)
    gone = (~kept(output.cache))[0].nonzero().squeeze(1).tolist()
    assert len(output.hidden_states) == 4
    for states in output.hidden_states:
        assert states.shape == (1, inputs["input_ids"].shape[1], 48)
        assert all(torch.equal(states[0, place], states[0, place - 1]) for place in gone)


@over(named(("llava", "gemma3")))
@torch.no_grad()
def test_rows_of_a_cache_that_change_places(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(Row(1), Row(2, words=3, seed=1))
    inputs |= positions(language, inputs["attention_mask"])
    token, there = torch.tensor([[11], [12]]), inputs["attention_mask"]
    there = torch.cat([there, there.new_ones(2, 1)], dim=1)

    def step(rows: list[int], change: Callable[[Any], Any]) -> Tensor:
        cache = model(**inputs).cache
        change(cache)
        more = positions(language, there[rows])["position_ids"][:, -1:]
        logits: Tensor = model(input_ids=token[rows], attention_mask=there[rows], position_ids=more, cache=cache).logits
        return logits

    expected = step([0, 1], lambda cache: None)
    for rows, change in (
        ([1, 0], lambda cache: cache.reorder_cache(torch.tensor([1, 0]))),
        ([1], lambda cache: cache.batch_select_indices(torch.tensor([1]))),
        ([0, 0, 1, 1], lambda cache: cache.batch_repeat_interleave(2)),
    ):
        torch.testing.assert_close(step(rows, change), expected[rows], **EXACT)


@torch.no_grad()
def test_a_cache_that_is_emptied_is_an_ordinary_one() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    cache = model(**inputs).cache
    cache.reset()
    assert record_of(cache) is None


def test_loss_and_gradients_are_those_of_the_sequence_that_is_left() -> None:
    (language,) = named(["llava"])
    model, dense, inputs = reduced(language, FIVE), language.build(), language.inputs(Row(2))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    output = model(**inputs, labels=labels)
    keep = kept(output.cache)
    logits = hidden_logits(language, dense, inputs, keep)[keep]
    expected = F.cross_entropy(logits[:-1].float(), labels[keep][1:])
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
    output.loss.backward()
    expected.backward()
    first, second = (one.model.multi_modal_projector.linear_1.weight.grad for one in (model, dense))
    assert first.abs().max() > 1e-4
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
