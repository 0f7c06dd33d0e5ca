"""Ways of ``generate`` on vision-language models with fewer image tokens: streams, stops, scores, seeds and caches."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.chatting import PAIR, PREFIX, SPECS, model_of, processor
from tests.helpers.generating import answers
from tests.helpers.languages import Row, named

transformers = pytest.importorskip("transformers")

(LLAVA,) = named(["llava"])
GREEDY = {"max_new_tokens": 5, "do_sample": False}
EXACT = {"atol": 1e-9, "rtol": 0}


class Stop(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends behind a number of tokens, and notes how many it was shown."""

    def __init__(self, length: int) -> None:
        self.length, self.shown = length, 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.shown = input_ids.shape[1]
        return torch.full((len(input_ids),), self.shown >= self.length)


@pytest.mark.slow
@SPECS
def test_a_stream_and_a_stop(spec: str) -> None:
    model, words, inputs = model_of(spec), processor(), LLAVA.inputs(Row(1))
    streamer = transformers.TextIteratorStreamer(words.tokenizer, skip_prompt=True)
    options = {**inputs, **GREEDY, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    length = inputs["input_ids"].shape[1]
    assert streamed == words.tokenizer.decode(model.generate(**inputs, **GREEDY)[0, length:])
    stop = Stop(length + 2)
    criteria = transformers.StoppingCriteriaList([stop])
    assert model.generate(**inputs, **GREEDY, stopping_criteria=criteria).shape[1] == stop.shown == length + 2


@pytest.mark.slow
@SPECS
def test_scores_logits_and_states_of_every_step(spec: str) -> None:
    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    wanted = ("output_scores", "output_logits", "output_hidden_states")
    answer, steps = answers(model, inputs, 4, **dict.fromkeys(wanted, True))
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(torch.stack(answer.logits, dim=1).double(), steps, atol=1e-5, rtol=0)
    assert [state[-1].shape for state in answer.hidden_states] == [(2, length, 48), *[(2, 1, 48)] * 3]
    chosen = model.compute_transition_scores(answer.sequences, answer.scores, normalize_logits=True)
    ids = answer.sequences[:, length:].unsqueeze(2)
    expected = torch.stack(answer.scores, dim=1).log_softmax(dim=2).gather(2, ids).squeeze(2)
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@SPECS
def test_sampling_follows_its_seed(spec: str) -> None:
    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(model.generate(**inputs, max_new_tokens=8, do_sample=True, temperature=2.0))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.slow
@SPECS
def test_caches_that_a_user_gives(spec: str) -> None:
    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    expected = model.generate(**inputs, **GREEDY)
    text = model.config.get_text_config()
    for cache in (transformers.DynamicCache(), transformers.DynamicCache(config=text)):
        assert torch.equal(model.generate(**inputs, **GREEDY, cache=cache), expected)
    for name in ("dynamic", "hybrid"):
        assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation=name), expected)
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=transformers.DynamicCache()), expected)
    for name in ("static", "sliding_window"):
        with pytest.raises(ts.RefusedError, match="a static cache has room for the uncut sequence"):
            model.generate(**inputs, **GREEDY, cache_implementation=name)
    with pytest.raises(ts.RefusedError, match="a static cache has room for the uncut sequence"):
        model.generate(**inputs, **GREEDY, cache=transformers.StaticCache(config=text, max_cache_len=200))


@pytest.mark.slow
@SPECS
def test_a_quantized_cache(spec: str) -> None:
    """The one of transformers, which needs a package for its numbers, with numbers that lose nothing."""
    from transformers.cache_utils import QuantizedLayer

    class Whole(QuantizedLayer):  # type: ignore[misc]
        def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
            return tensor

        def _dequantize(self, tensor: Tensor) -> Tensor:
            return tensor

    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    cache = transformers.Cache(layers=[Whole(residual_length=3) for _ in range(3)])
    options = {**GREEDY, "num_beams": 2}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, cache=cache), expected)


@pytest.mark.slow
def test_without_a_cache_prefix_methods_answer_the_same() -> None:
    model, inputs = model_of(PREFIX), LLAVA.inputs(*PAIR)
    assert torch.equal(model.generate(**inputs, **GREEDY, use_cache=False), model.generate(**inputs, **GREEDY))


@pytest.mark.slow
@SPECS
def test_logits_of_the_places_that_are_asked_for(spec: str) -> None:
    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    with torch.no_grad():
        whole = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, whole[:, -1:], **EXACT)
        torch.testing.assert_close(
            model(**inputs, logits_to_keep=torch.tensor([3, 7])).logits, whole[:, [3, 7]], **EXACT
        )
