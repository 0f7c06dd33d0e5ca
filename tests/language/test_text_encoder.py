"""Text-guided methods with a text tower: what is compared, in float64 and written out; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.encoders import encoder_of, plain_patches, plain_text
from tests.helpers.generating import answers, over
from tests.helpers.hidden import called, into_layers, kept
from tests.helpers.languages import BOS, IMAGE, PAD, WORDS, Inputs, Language, Row, named
from tests.helpers.references import prefix as plain
from tests.helpers.towers_heard import of_patches
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.apply import encoder_of as given_encoder
from tokensieve.language.host import find_host
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.methods.language.cdpruner import CDPruner
from tokensieve.methods.language.eadp import EADP
from tokensieve.methods.language.recoverable import RecoverableCompression

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("without_gradients")
(LLAVA,) = named(["llava"])
METHODS = [CDPruner(tokens=5), EADP(tokens=5), RecoverableCompression(keep=1.0)]
LONG = Row(1, words=27)  # more than the text tower takes at once


def prompts(language: Language) -> Inputs:
    """A short prompt, a long one with two images, and one whose only words are special tokens."""
    inputs = language.inputs(Row(1), replace(LONG, images=2, seed=1), Row(1, seed=2))
    silent = inputs["input_ids"][2]
    silent[(silent != IMAGE) & (silent != PAD)] = BOS
    return inputs


def words_of(ids: Tensor) -> list[int]:
    return [number for number in ids.tolist() if number in WORDS]


def by_formula(
    method: PrefixMethod, language: Language, encoder: ts.TextEncoder, inputs: Inputs
) -> list[tuple[int, list[int], list[Tensor] | None]]:
    """For each image its row, the places that stay, and what stands there where that is no feature."""
    dense: Any = language.build()
    features = list(dense.model.get_image_features(inputs["pixel_values"]).pooler_output)
    patches = plain_patches(encoder, inputs["pixel_values"])
    importance, keys = of_patches(dense, inputs)[1]
    size = language.features
    found: list[tuple[int, list[int], list[Tensor] | None]] = []
    for row, ids in enumerate(inputs["input_ids"]):
        words = words_of(ids)
        nothing = patches.new_zeros(0, patches.shape[2])
        texts, states = plain_text(encoder, words) if words else (nothing, nothing)
        for _ in range(int((ids == IMAGE).sum()) // size):
            number = len(found)
            own = slice(size * number, size * (number + 1))
            one, seen, values = features[number], patches[number], None
            match method:
                case CDPruner():
                    places = plain.cdpruner(one, texts, method.count(size), None, seen)
                case EADP():
                    options = method.power, method.sigma, (4, 4), (seen, texts)
                    places = plain.eadp(one, states, method.count(size), *options)
                case RecoverableCompression():
                    count, merged, weight = method.count(size), method.merged, method.text_weight
                    heard = importance[own].float(), keys[own].float()  # the precision in which the tower is heard
                    places, values, _ = plain.recoverable(
                        one, heard[0].double(), heard[1].double(), texts, count, merged, weight, seen
                    )
                case _:
                    raise AssertionError(f"no reference of {method}")
            found.append((row, places, values))
    return found


@over(named(["llava", "paligemma"]))
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_patches_are_compared_with_the_prompt_where_both_towers_meet(language: Language, method: PrefixMethod) -> None:
    encoder, inputs = encoder_of(language), prompts(language)
    model = ts.apply(language.build(), [method], text_encoder=encoder)
    answer, _ = answers(model, inputs, 1)
    held = kept(answer.cache)[:, : inputs["input_ids"].shape[1]]
    entered = into_layers(model, lambda: model(**inputs))
    behind = held.long().cumsum(dim=1) - 1 + (held.sum(dim=1).max() - held.sum(dim=1, keepdim=True))
    scale = _scale(language, inputs)
    used = [0] * len(held)
    for row, places, values in by_formula(method, language, encoder, inputs):
        image = (inputs["input_ids"][row] == IMAGE).nonzero().squeeze(1)[used[row] : used[row] + language.features]
        used[row] += language.features
        assert held[row, image].nonzero().squeeze(1).tolist() == places
        if values is not None:
            torch.testing.assert_close(
                entered[row, behind[row, image[places]]] / scale, torch.stack(values), rtol=1e-5, atol=1e-5
            )


def _scale(language: Language, inputs: Inputs) -> float:
    """What the host's decoder multiplies embeddings by on their way to the first layer."""
    dense: Any = language.build()
    host = find_host(dense)
    assert host is not None
    entered = into_layers(dense, lambda: dense(**inputs))
    given = called(host.decoder, lambda: dense(**inputs))["inputs_embeds"]
    return float(entered[0, -1, 0] / given[0, -1, 0])


def test_the_projected_patches_decide_and_not_the_features() -> None:
    inputs = prompts(LLAVA)
    with_encoder = ts.apply(LLAVA.build(), "cdpruner:tokens=5", text_encoder=encoder_of(LLAVA))
    without = ts.apply(LLAVA.build(), "cdpruner:tokens=5")
    one, other = (kept(answers(model, inputs, 1)[0].cache) for model in (with_encoder, without))
    assert not torch.equal(one, other)


def test_methods_in_the_tower_give_every_patch_back() -> None:
    encoder, inputs = encoder_of(LLAVA), LLAVA.inputs(Row(2), Row(1, seed=1))
    model = ts.apply(LLAVA.build(), "tome:r=2+cdpruner:tokens=5", text_encoder=encoder)
    held = kept(answers(model, inputs, 2)[0].cache)[:, : inputs["input_ids"].shape[1]]
    tower = ts.apply(LLAVA.build(), "tome:r=2")
    outputs = tower.model.get_image_features(inputs["pixel_values"])
    patches = encoder.patches(outputs.last_hidden_state)
    texts, _ = plain_text(encoder, words_of(inputs["input_ids"][0]))
    image = (inputs["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    for number in range(2):
        places = plain.cdpruner(outputs.pooler_output[number], texts, 5, None, patches[number])
        assert held[0, image[16 * number : 16 * (number + 1)]].nonzero().squeeze(1).tolist() == places


def test_features_that_were_made_before_and_copied_are_compared_alike() -> None:
    model, inputs = ts.apply(LLAVA.build(), "eadp:tokens=5:sigma=0", text_encoder=encoder_of(LLAVA)), prompts(LLAVA)
    expected = model(**inputs).logits
    outputs = model.model.get_image_features(inputs.pop("pixel_values"))
    copied = type(outputs)(last_hidden_state=outputs.last_hidden_state, pooler_output=outputs.pooler_output)
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": copied}).logits, expected)


def test_an_encoder_that_nobody_reads_or_that_sees_otherwise_is_refused() -> None:
    encoder = encoder_of(LLAVA)
    for spec in ("divprune:tokens=4", "mmtok:tokens=4", "tome:r=2", "fastv:keep=0.5"):
        with pytest.raises(TokensieveError, match=r"compares nothing by it: .* cdpruner, eadp, recoverable"):
            ts.apply(LLAVA.build(), spec, text_encoder=encoder)
    with pytest.raises(TokensieveError, match=r"text_encoder must be a ts\.TextEncoder"):
        ts.apply(LLAVA.build(), "cdpruner:tokens=4", text_encoder=encoder.model)
    encoder.model.config.vision_config.hidden_size = 48
    model = LLAVA.build()
    with pytest.raises(RefusedError, match="its vision tower has hidden_size 48, that of the model 32"):
        ts.apply(model, "cdpruner:tokens=4", text_encoder=encoder)
    assert not ts.is_applied(model)


@pytest.mark.slow
def test_a_feature_that_is_no_patch_is_refused() -> None:
    encoder = encoder_of(LLAVA)
    (tiled,) = named(["llava-next"])
    model = ts.apply(tiled.build(), "cdpruner:tokens=4", text_encoder=encoder)
    with pytest.raises(RefusedError, match=r"cdpruner compares every patch with the text .* leave text_encoder out"):
        model(**tiled.inputs(Row(1)))


def test_what_is_no_encoder_is_refused() -> None:
    encoder = encoder_of(LLAVA)
    with pytest.raises(TokensieveError, match=r"a text encoder is a CLIPModel, .* got CLIPVisionModel"):
        replace(encoder, model=encoder.model.vision_model)
    with pytest.raises(TokensieveError, match="prompt_tokenizer must be a tokenizer of transformers, got str"):
        replace(encoder, prompt_tokenizer="llava")
    with pytest.raises(TokensieveError, match="puts no token behind a text"):
        replace(encoder, tokenizer=_bare()).encoded("w5 w6")
    with pytest.raises(TokensieveError, match="prompt holds token 900, which prompt_tokenizer does not know"):
        encoder.text([900], [True])


def _bare() -> Any:
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "w5": 1, "w6": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def test_words_between_images_are_joined_and_special_tokens_left_out() -> None:
    encoder = encoder_of(LLAVA)
    ids = [BOS, 5, 6, IMAGE, IMAGE, 7, IMAGE, 8]
    assert encoder.text(ids, [number != IMAGE for number in ids]) == "w5 w6 w7 w8"
    assert encoder.text([BOS, IMAGE], [True, False]) == "" and len(encoder.encoded("").texts) == 0


def test_a_long_text_is_cut_into_pieces() -> None:
    encoder = encoder_of(LLAVA)
    prompt = encoder.encoded(" ".join(f"w{number}" for number in range(5, 32)))
    texts, words = plain_text(encoder, list(range(5, 32)))
    assert prompt.texts.shape == (3, 24) and prompt.words.shape == (27, 24)
    torch.testing.assert_close(prompt.texts, texts)
    torch.testing.assert_close(prompt.words, words)


def test_a_model_with_an_encoder_is_not_saved(tmp_path: Path) -> None:
    model = ts.apply(LLAVA.build(), "cdpruner:tokens=4", text_encoder=encoder_of(LLAVA))
    with pytest.raises(TokensieveError, match="a text encoder belongs to the methods, and is not saved"):
        ts.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists() and given_encoder(model) is not None
    assert given_encoder(ts.remove(model)) is None
