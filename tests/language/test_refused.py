"""What a model with fewer image tokens cannot do, refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokensieve as ts
from tests.helpers.generating import answers, over, reduced
from tests.helpers.languages import LANGUAGES, Language, Row, named
from tokensieve.errors import RefusedError
from tokensieve.methods.language.divprune import DivPrune

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("without_gradients")
FIVE = DivPrune(tokens=5)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "static cache": ({"cache_implementation": "static"}, "a static cache has room"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "generate without an assistant"),
    "attentions": ({"output_attentions": True}, "hands out nothing for output_attentions"),
    "chunks": ({"prefill_chunk_size": 8}, "leave prefill_chunk_size out"),
}


@over(LANGUAGES)
@pytest.mark.parametrize("what", REFUSED)
def test_ways_of_generating(language: Language, what: str) -> None:
    options, reason = REFUSED[what]
    error: type[Exception] = RefusedError
    if language.linear and what == "prompt lookup":  # transformers refuses it first
        error, reason = ValueError, "not supported with stateful models"
    with pytest.raises(error, match=reason):
        answers(reduced(language, FIVE), language.inputs(Row(1)), **options)


def test_an_assistant() -> None:
    (llava,) = named(["llava"])
    with pytest.raises(RefusedError, match="generate without an assistant"):
        answers(reduced(llava, FIVE), llava.inputs(Row(1)), assistant_model=llava.build())


def test_padding_behind_earlier_tokens_of_linear_attention() -> None:
    (language,) = named(["qwen3.5"])
    model = reduced(language, FIVE)
    first = model(**language.inputs(Row(0, words=4), Row(0, words=4, seed=1)))
    asked = language.inputs(Row(1), Row(0, words=5 + language.features, seed=1))
    asked["attention_mask"] = torch.ones(2, 7 + asked["input_ids"].shape[1], dtype=torch.long)
    places = torch.arange(asked["input_ids"].shape[1]).expand(3, 2, -1) + 7
    with pytest.raises(RefusedError, match="give the conversations one by one"):
        model(**asked, position_ids=places, cache=first.cache)


def test_positions_with_gaps_for_flash_attention() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    first = model(**inputs)
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    inputs["attention_mask"] = torch.ones(1, 2 * inputs["input_ids"].shape[1], dtype=torch.long)
    with pytest.raises(RefusedError, match="takes positions with gaps for packed sequences"):
        model(**inputs, cache=first.cache)


def test_embeddings_whose_images_nobody_can_find() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(RefusedError, match="give input_ids and pixel_values"):
        model(**inputs)


def test_features_that_do_not_say_where_an_image_ends() -> None:
    (language,) = named(["smolvlm"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    inputs["mm_encoder_outputs"] = torch.zeros(1, 16, 48, dtype=torch.float64)
    del inputs["pixel_values"]
    with pytest.raises(RefusedError, match="does not say where an image ends"):
        model(**inputs)


def test_packed_sequences() -> None:
    (language,) = named(["llava"])
    model, inputs = reduced(language, FIVE), language.inputs(Row(1))
    ends = torch.tensor([0, inputs["input_ids"].shape[1]], dtype=torch.int32)
    with pytest.raises(RefusedError, match="give one sequence a row"):
        model(**inputs, cu_seq_lens_q=ends, cu_seq_lens_k=ends)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("T5Gemma2ForConditionalGeneration", "images are read by the encoder"),
        ("MiniCPMV4_6ForConditionalGeneration", "names no image_token_id"),
        ("CLIPModel", "none of a known shape"),
    ],
)
def test_models_without_a_place_for_it(kind: str, reason: str) -> None:
    from tests.helpers.walk_configs import config_for

    made = getattr(transformers, kind)
    with torch.device("meta"):
        model = made(config_for(made))
    with pytest.raises(RefusedError, match=reason):
        ts.apply(model, FIVE)
