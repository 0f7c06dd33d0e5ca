"""What prefix methods promise on every host: the dense model that is not shown what left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.generating import answers, over, reduced, whole
from tests.helpers.hidden import cut_logits, hidden_logits, into_layers, kept
from tests.helpers.languages import LANGUAGES, Language, Row
from tokensieve.errors import RefusedError
from tokensieve.language.cache import record_of
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.methods.language.divprune import DivPrune
from tokensieve.methods.language.prefix_controls import PrefixGrid, PrefixRandom
from tokensieve.methods.language.visionzip import VisionZip

pytest.importorskip("transformers")

ROWS = (Row(1), Row(2, words=3, seed=1), Row(0, words=9, seed=2))
METHODS = (DivPrune(tokens=5), PrefixRandom(tokens=3), PrefixGrid(keep=0.25), VisionZip(tokens=6))
EXACT = {"atol": 1e-9, "rtol": 0}
LINEAR = {"atol": 1e-5, "rtol": 0}  # linear attention computes in float32


pytestmark = pytest.mark.usefixtures("without_gradients")


@over(LANGUAGES)
def test_keeping_all_is_the_dense_model(language: Language) -> None:
    inputs = language.inputs(*ROWS)
    dense, model = language.build(), reduced(language, DivPrune(keep=1.0))
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)
    (first, steps), (second, dense_steps) = answers(model, inputs), answers(dense, inputs)
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(steps, dense_steps)


@over([one for one in LANGUAGES if not one.linear])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_stays_sees_what_it_would_see_if_the_rest_were_hidden(language: Language, method: PrefixMethod) -> None:
    if isinstance(method, VisionZip) and not language.reads_tower:
        with pytest.raises(RefusedError, match="not a patch of one picture"):
            reduced(language, method)(**language.inputs(Row(1)))
        return
    inputs = language.inputs(*ROWS)
    dense, model = language.build(), reduced(language, method)
    changed = torch.zeros(*inputs["input_ids"].shape, 48, dtype=torch.float64)
    with torch.no_grad():
        given: list[Any] = []
        seen = into_layers(model, lambda: given.append(model(**inputs)))
        output = given[-1]
        record = record_of(output.cache)
        assert record is not None
        for row, (columns, values) in enumerate(zip(record.columns, seen, strict=True)):
            changed[row, columns[columns >= 0]] = values[columns >= 0]
        keep = kept(output.cache)
        expected = hidden_logits(language, dense, inputs, keep, changed)
        stays = keep & inputs["attention_mask"].bool()
        torch.testing.assert_close(output.logits[stays], expected[stays], **EXACT)
        gone = language.features - method.count(language.features)
        assert keep.logical_not().sum(1).tolist() == [row.images * gone for row in ROWS]
        assert (expected - dense(**inputs).logits)[stays].abs().max() > 1e-4

        answer, steps = answers(model, inputs, 16)
        full = whole(language, inputs, answer.sequences)
        keep = torch.cat([keep, torch.ones(len(keep), 15, dtype=torch.bool)], dim=1)
        assert torch.equal(kept(answer.cache), keep)
        changed = torch.cat([changed, torch.zeros(len(keep), 15, 48, dtype=torch.float64)], dim=1)
        expected = hidden_logits(language, dense, full, keep, changed)
        torch.testing.assert_close(steps, expected[:, -16:], **EXACT)


@over([one for one in LANGUAGES if one.linear])
def test_layers_of_linear_attention_see_nothing_of_what_left(language: Language) -> None:
    dense, model = language.build(), reduced(language, DivPrune(tokens=5))
    inputs = language.inputs(Row(2))
    with torch.no_grad():
        answer, steps = answers(model, inputs, 16)
        full = whole(language, inputs, answer.sequences)
        expected = cut_logits(language, dense, full, kept(answer.cache), anew=False)
    assert not kept(answer.cache).all()
    torch.testing.assert_close(steps, expected[:, -16:], **LINEAR)


@over([one for one in LANGUAGES if one.axes == 1 and one.window is None])
def test_compact_positions_are_the_dense_decoder_on_what_is_left(language: Language) -> None:
    dense, model = language.build(), reduced(language, DivPrune(tokens=5, positions="compact"))
    inputs = language.inputs(Row(2))
    with torch.no_grad():
        output, (answer, steps) = model(**inputs), answers(model, inputs)
        keep = kept(output.cache)
        expected = cut_logits(language, dense, inputs, keep, anew=True)
        torch.testing.assert_close(output.logits[keep], expected[0], **EXACT)
        full = whole(language, inputs, answer.sequences)
        expected = cut_logits(language, dense, full, kept(answer.cache), anew=True)
        torch.testing.assert_close(steps, expected[:, -8:], **EXACT)
        _, apart = answers(reduced(language, DivPrune(tokens=5)), inputs)
    assert (steps - apart).abs().max() > 1e-4


@over([one for one in LANGUAGES if one.axes > 1 or one.window is not None])
def test_compact_positions_are_refused_where_they_mean_nothing(language: Language) -> None:
    reason = "window" if language.window is not None else "several"
    with pytest.raises(RefusedError, match=reason):
        reduced(language, DivPrune(tokens=5, positions="compact"))(**language.inputs(Row(1)))


@over(LANGUAGES)
def test_a_row_of_a_batch_answers_as_it_does_alone(language: Language) -> None:
    model = reduced(language, DivPrune(tokens=5))
    _, together = answers(model, language.inputs(*ROWS))
    for number, row in enumerate(ROWS):
        _, alone = answers(model, language.inputs(row))
        torch.testing.assert_close(together[number : number + 1], alone, **(LINEAR if language.linear else EXACT))
