"""Generation with fewer image tokens, in the ways that users of transformers generate."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts
from tests.helpers.generating import answers, over, reduced, whole
from tests.helpers.hidden import hidden_logits, kept, positions
from tests.helpers.languages import IMAGE, LANGUAGES, PIXELS, VIDEO, Inputs, Language, Row
from tokensieve.methods.language.divprune import DivPrune
from tokensieve.methods.language.visionzip import VisionZip

pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("without_gradients")
PAIR = (Row(1), Row(2, words=3, seed=1))
FIVE = DivPrune(tokens=5)
EXACT = {"atol": 1e-9, "rtol": 0}
MASKED = [one for one in LANGUAGES if not one.linear]  # where a token can be hidden from all layers


def hidden_steps(language: Language, inputs: Inputs, sequences: Tensor, cache: Any) -> Tensor:
    """(B, T, V) logits of the dense model before each generated token, where what left the cache is hidden."""
    full = whole(language, inputs, sequences)
    number = sequences.shape[1] - inputs["input_ids"].shape[1]
    return hidden_logits(language, language.build(), full, kept(cache))[:, -number:]


@over(MASKED)
def test_beams_keep_their_own_tokens(language: Language) -> None:
    model = reduced(language, FIVE)
    answer, _ = answers(model, language.inputs(*PAIR), 6, num_beams=2, num_return_sequences=2, output_scores=True)
    twice = language.inputs(*(row for row in PAIR for _ in range(2)))
    steps = hidden_steps(language, twice, answer.sequences, answer.cache)
    chosen = answer.sequences[:, -6:].unsqueeze(2)
    expected = F.log_softmax(steps, dim=2).gather(2, chosen).squeeze(2).mean(dim=1)
    torch.testing.assert_close(answer.sequences_scores.double(), expected, atol=1e-5, rtol=0)
    assert not torch.equal(answer.sequences[0], answer.sequences[1])


@over(MASKED)
def test_several_samples_of_each_prompt(language: Language) -> None:
    options = {"do_sample": True, "num_return_sequences": 2}
    inputs = language.inputs(*PAIR)
    answer, steps = answers(reduced(language, FIVE), inputs, 6, **options)
    twice = language.inputs(*(row for row in PAIR for _ in range(2)))
    torch.testing.assert_close(steps, hidden_steps(language, twice, answer.sequences, answer.cache), **EXACT)
    assert torch.equal(answer.sequences[:, :-6], inputs["input_ids"].repeat_interleave(2, dim=0))
    assert not torch.equal(answer.sequences[0], answer.sequences[1])


@over(MASKED)
def test_a_second_turn_on_the_cache(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(*PAIR)
    first, _ = answers(model, inputs, 4)
    said = first.sequences[:, inputs["input_ids"].shape[1] :]
    second = language.longer(inputs, torch.cat([said, torch.tensor([[11, 12, 13], [14, 15, 16]])], dim=1))
    text = {name: value for name, value in second.items() if name not in PIXELS}
    answer, steps = answers(model, text, 4, cache=first.cache)
    torch.testing.assert_close(steps, hidden_steps(language, second, answer.sequences, answer.cache), **EXACT)


@over([one for one in MASKED if one.axes == 1 and one.name != "paligemma"])  # their dense models take images later
def test_images_in_a_second_turn_of_some_rows(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(*PAIR)
    first, _ = answers(model, inputs, 4)
    said = first.sequences[:, inputs["input_ids"].shape[1] :]
    more = language.inputs(Row(1, seed=3), Row(0, words=5 + language.features, seed=4))
    asked = more["input_ids"][:, -5 - language.features :]
    second = language.longer(inputs, torch.cat([said, asked], dim=1))
    if language.types is not None:
        second[language.types[0]][:, -asked.shape[1] :] = more[language.types[0]][:, -asked.shape[1] :]
    new = {name: more[name] for name in PIXELS if name in more}
    answer, steps = answers(model, second | new, 4, cache=first.cache)
    full = language.inputs(*PAIR, Row(1, seed=3))
    pictures = {name: full[name] for name in PIXELS if name in full}
    torch.testing.assert_close(
        steps, hidden_steps(language, second | in_order(pictures, language), answer.sequences, answer.cache), **EXACT
    )


def in_order(pictures: Inputs, language: Language) -> Inputs:
    """The pictures of three prompts of one, two and one image as those of two prompts, the last one in the first."""
    if pictures["pixel_values"].dim() == 5 and "image_sizes" not in pictures:  # by row
        (one, two, other) = pictures["pixel_values"]
        return {"pixel_values": torch.stack([torch.stack([one[0], other[0]]), two])}
    return {name: value[[0, 3, 1, 2]] for name, value in pictures.items()}


@over(LANGUAGES)
def test_two_threads_at_once(language: Language) -> None:
    model = reduced(language, FIVE)
    prompts = [language.inputs(Row(1)), language.inputs(Row(2, words=3, seed=1)), language.inputs(Row(1, seed=5))]
    alone = [answers(model, prompt, 4)[0].sequences for prompt in prompts]

    def ask(prompt: Inputs) -> Tensor:
        with torch.no_grad():
            options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
            sequences: Tensor = model.generate(**prompt, **options)
            return sequences

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(ask, prompts * 2))
    assert all(torch.equal(one, other) for one, other in zip(together, alone * 2, strict=True))


@over(LANGUAGES)
def test_nothing_that_is_given_is_written_into(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(*PAIR)
    before = copy.deepcopy(inputs)
    answer, _ = answers(model, inputs)
    model(**inputs)
    assert before.keys() == inputs.keys()
    assert all(torch.equal(before[name], inputs[name]) for name in before)
    assert torch.equal(answer.sequences[:, :-8], inputs["input_ids"])


@over(LANGUAGES)
def test_removing_gives_the_dense_model_back(language: Language) -> None:
    inputs = language.inputs(*PAIR)
    dense = language.build()
    method = VisionZip(tokens=6) if language.reads_tower else FIVE
    model = reduced(language, method)
    output = model(**inputs)
    ts.remove(model)
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)
    assert not torch.equal(output.logits, dense(**inputs).logits)
    kinds = [(name, type(part)) for name, part in dense.named_modules()]
    assert [(name, type(part)) for name, part in model.named_modules()] == kinds
    assert {name: set(vars(part)) for name, part in model.named_modules()} == {
        name: set(vars(part)) for name, part in dense.named_modules()
    }


@over(LANGUAGES)
def test_a_copy_answers_the_same(language: Language) -> None:
    inputs = language.inputs(*PAIR)
    model = reduced(language, VisionZip(tokens=6) if language.reads_tower else FIVE)
    other = copy.deepcopy(model)
    expected = model(**inputs).logits
    ts.remove(model)
    assert torch.equal(other(**inputs).logits, expected)


@over(MASKED)
def test_no_cache_and_eager_attention_change_nothing(language: Language) -> None:
    model, inputs = reduced(language, FIVE), language.inputs(Row(2))
    given = inputs | positions(language, inputs["attention_mask"])
    given.pop("attention_mask")
    expected = model(**given).logits
    torch.testing.assert_close(model(**given, use_cache=False).logits, expected, **EXACT)
    _, steps = answers(model, inputs)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(answers(model, inputs)[1], steps, atol=1e-5, rtol=0)


@over([one for one in MASKED if one.axes == 1])  # with more, generate goes on behind the last one of each
def test_a_prompt_that_ends_in_an_image(language: Language) -> None:
    inputs = language.inputs(Row(1, words=0))
    text = ("input_ids", "attention_mask", *(language.types or ())[:1])
    inputs = {name: value[:, :-1] if name in text else value for name, value in inputs.items()}
    answer, steps = answers(reduced(language, DivPrune(tokens=2)), inputs)
    assert not kept(answer.cache)[0, inputs["input_ids"].shape[1] - 1]
    given = whole(language, inputs, answer.sequences)
    logits = hidden_logits(language, language.build(), given, kept(answer.cache))
    last = kept(answer.cache)[0, : inputs["input_ids"].shape[1]].nonzero().max()
    torch.testing.assert_close(steps[:, 1:], logits[:, -7:], **EXACT)
    torch.testing.assert_close(steps[:, 0], logits[:, last], **EXACT)
