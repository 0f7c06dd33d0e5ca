"""What a prompt costs, against torch's own counter and the sizes of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tokensieve as ts
from tests.helpers.asking import DEPTH, FEATURES, asked_model, asking_processor
from tests.helpers.languages import LANGUAGES, Language, Row
from tokensieve.answers.cost import PromptCost, count_prompts
from tokensieve.answers.generate import greedy
from tokensieve.answers.prompts import ProcessorPrompts, random_questions
from tokensieve.language.host import host_of

pytest.importorskip("transformers")
WIDTH, HEADS, KV_HEADS = 48, 4, 2
# What a method leaves, from which layer on, and what it multiplies besides, by the tokens in front of it.
CASES: dict[str, tuple[dict[int, int], Any]] = {
    "": ({0: FEATURES}, lambda tokens: 0),
    "prefix-grid:tokens=9": ({0: 9}, lambda tokens: 0),
    "fastv:keep=0.5:layer=2": ({0: FEATURES, 2: FEATURES // 2}, lambda tokens: tokens * WIDTH),
    "tome:r=4+prefix-grid:keep=0.25+fastv:keep=0.34:layer=1": ({0: 9, 1: 4}, None),
}


@pytest.fixture(scope="module")
def prompt() -> Any:
    (question,) = random_questions(1)
    return ProcessorPrompts(asking_processor()).batch([question])


@pytest.mark.parametrize("spec", CASES)
def test_what_is_announced_is_what_runs(spec: str, prompt: Any) -> None:
    model = asked_model()
    if spec:
        ts.apply(model, spec)
    cost = count_prompts(model, [prompt])
    stages, own = CASES[spec]
    words = prompt["input_ids"].shape[1] - FEATURES
    seen = [stages[max(first for first in stages if first <= layer)] + words for layer in range(DEPTH)]
    assert cost.stages == stages and cost.features == FEATURES and cost.depth == DEPTH
    assert cost.mean_tokens == sum(seen) / DEPTH - words
    assert cost.cache == sum(tokens * 2 * KV_HEADS * (WIDTH // HEADS) * 4 for tokens in seen)
    if own is None:  # tome multiplies too
        return
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        greedy(model, host_of(model, "test"), prompt, tokens=2, exactly=True)
    assert counter.get_total_flops() / 2 == cost.first + cost.token + own(seen[0])


def test_parts_by_the_sizes_of_the_model(prompt: Any) -> None:
    cost = count_prompts(asked_model(), [prompt, prompt])
    patches, width, hidden = FEATURES + 1, 32, 64
    block = patches * (4 * width**2 + 2 * width * hidden) + 2 * patches**2 * width
    assert cost.tower == 3 * block + FEATURES * width * 3 * 8**2
    assert cost.projector == FEATURES * (width * WIDTH + WIDTH**2)
    words = int(prompt["input_ids"].shape[1])
    linear = 2 * WIDTH**2 + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * 96
    head = WIDTH * asked_model().config.text_config.vocab_size
    assert cost.prefill == DEPTH * (words * linear + 2 * words**2 * WIDTH) + head
    assert cost.token == DEPTH * (linear + 2 * (words + 1) * WIDTH) + head


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES, ids=[one.name for one in LANGUAGES])
def test_every_host_has_parts(language: Language) -> None:
    """Less goes in behind a prefix method, and what comes before it costs the same."""
    inputs = language.inputs(Row(1))
    dense = count_prompts(language.build(), [inputs])
    model = ts.apply(language.build(), "prefix-grid:keep=0.5")
    reduced = count_prompts(model, [inputs])
    parts: list[PromptCost] = [dense, reduced]
    assert all(min(one.tower, one.projector, one.prefill, one.token, one.cache) > 0 for one in parts)
    assert (dense.tower, dense.projector, dense.features) == (reduced.tower, reduced.projector, reduced.features)
    assert dense.tokens == dense.features == (inputs["input_ids"] == 99).sum()
    assert reduced.tokens < dense.tokens and reduced.prefill < dense.prefill
    assert reduced.cache < dense.cache or (language.window == 7 and reduced.cache == dense.cache)  # layers hold no more
