"""What stayed of the images of a call, as it is told to who watches."""

from __future__ import annotations

import pytest
import torch

import tokensieve as ts
from tests.helpers.asking import FEATURES, asked_model, asking_processor
from tokensieve.answers.prompts import ProcessorPrompts, random_questions
from tokensieve.language.kept import watching
from tokensieve.language.record import Record

pytest.importorskip("transformers")


@pytest.mark.parametrize("spec", ["visionzip:tokens=9+fastv:keep=0.5:layer=2", "prefix-grid:keep=1.0"])
def test_stages_are_those_of_the_cache(spec: str) -> None:
    inputs = ProcessorPrompts(asking_processor()).batch(random_questions(2))
    model = ts.apply(asked_model(), spec)
    with torch.no_grad(), watching() as calls:
        output = model(**inputs, use_cache=True)
        more = model(input_ids=torch.tensor([[7], [8]]), cache=output.cache)
    (call,) = calls  # the second one has no image
    assert more.logits.shape[1] == 1
    assert torch.equal(call.visual, inputs["input_ids"] == model.config.image_token_id)
    if "keep=1.0" in spec:
        assert [first for first, _ in call.stages] == [0] and call.stages[0][1].all() and not call.changed.any()
        return
    assert [first for first, _ in call.stages] == [0, 2]
    cache = output.cache
    held: list[Record] = [cache.record, cache.later[2]]
    for (_, stays), record in zip(call.stages, held, strict=True):
        places = [row[(row >= 0) & (row < stays.shape[1])].tolist() for row in record.columns]
        assert [row.nonzero().flatten().tolist() for row in stays] == places
    assert (call.visual & call.stages[0][1]).sum(dim=1).tolist() == [9, 9]
    assert 0 < call.changed.sum() < 2 * FEATURES and not (call.changed & ~call.stages[0][1]).any()
    assert not (call.changed & ~call.visual).any()


def test_nobody_watches_nothing_is_noted() -> None:
    model = ts.apply(asked_model(), "prefix-grid:tokens=9")
    inputs = ProcessorPrompts(asking_processor()).batch(random_questions(1))
    with watching() as calls:
        pass
    with torch.no_grad():
        model(**inputs)
    assert calls == []
