"""The measurement in one run: answers, controls, resuming."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tokensieve as ts
import tokensieve.answers as answers
from tests.helpers.asking import FEATURES, WORDS, asked_model, asking_processor, saved_questions
from tokensieve.errors import TokensieveError
from tokensieve.measure.results import open_results
from tokensieve.models.runtime import Runtime

pytest.importorskip("transformers")
CONTROLS = ["prefix-random", "prefix-grid", "downsample"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[answers.Question]:
    return answers.read_questions(saved_questions(tmp_path_factory.mktemp("questions") / "folder", count=3))


def alone(questions: Sequence[answers.Question], tokens: int) -> list[str]:
    """What transformers answers to each question by itself."""
    model, processor = asked_model(), asking_processor()
    found = []
    for asked in questions:
        content = [{"type": "image"}, {"type": "text", "text": asked.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        given = processor(images=asked.picture(), text=text, return_tensors="pt")
        options = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": [WORDS.index("<image>")]}
        row = model.generate(**given, **options)[0, given["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(row, skip_special_tokens=True))
    return found


def test_rows(questions: list[answers.Question], tmp_path: Path) -> None:
    """Of two questions one is answered as the dense model does: in a batch as alone."""
    one, two = questions[:2]
    said = alone([one, two], 3)
    asked = [
        answers.Question(one.image, one.question, ("no", said[0].upper() + ".")),
        answers.Question(two.image, two.question, ("no",)),
    ]
    file = tmp_path / "rows.json"
    measured = answers.bench(
        asked_model(),
        asking_processor(),
        asked,
        ["divprune:tokens=9"],
        open_results(file, {}),
        batch_size=2,
        max_new_tokens=3,
    )
    dense, reduced, *controls = measured.rows
    assert (dense.variant, dense.images, dense.F) == ("dense", 2, 1)
    assert [dense.metrics[name] for name in ("accuracy", "agree", "KL")] == [50, 100, 0]
    assert dense.metrics["accuracy ±"] == pytest.approx(100 * (0.25 / 2) ** 0.5)
    assert [row.variant for row in controls] == [f"{name}:tokens=9" for name in CONTROLS]
    assert all(row.metrics["image tokens"] == 9 and row.metrics["KL"] > 0 for row in (reduced, *controls))
    assert pytest.approx(dense.gmacs / reduced.gmacs) == reduced.F and reduced.F > 1
    again = open_results(file, {}, resume=True)
    assert again.rows == measured.rows
    before = {row.variant: row.metrics for row in again.rows}
    answers.bench(asked_model(), asking_processor(), asked, ["divprune:tokens=9"], again, max_new_tokens=1)
    assert {row.variant: row.metrics for row in again.rows} == before  # nothing is measured again


def test_nothing_left_out_is_the_dense_model(questions: list[answers.Question]) -> None:
    measured = answers.bench(
        asked_model(), asking_processor(), questions[:1], ["prefix-grid:keep=1.0"], max_new_tokens=2
    )
    dense, same = measured.rows  # and no control beside one that leaves all tokens in
    assert (same.metrics, same.F) == (dense.metrics, 1) and same.metrics["KL"] == 0


@pytest.mark.slow
def test_controls_keep_as_many(questions: list[answers.Question]) -> None:
    """Of a decoder method as many as its layers see on average; none twice; refused ones are named."""
    model = asked_model()
    specs = ["fastv:keep=0.5:layer=2", "prefix-grid:tokens=27", "tome:r=2"]
    measured = answers.bench(model, asking_processor(), questions, specs, max_new_tokens=2)
    expected = ["dense", specs[0], *(f"{name}:tokens=27" for name in CONTROLS), "tome:r=2"]
    assert [row.variant for row in measured.rows] == expected and not measured.left_out
    fastv, grid = measured.rows[1], measured.find("prefix-grid:tokens=27")
    assert grid is not None and fastv.metrics["cache MB"] == grid.metrics["cache MB"]
    assert fastv.metrics["image tokens, layer 3 on"] == FEATURES / 2


@pytest.mark.slow
def test_times_are_added_to_rows(questions: list[answers.Question], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    common: dict[str, Any] = {"max_new_tokens": 3, "rounds": 1}
    first = answers.bench(asked_model(), asking_processor(), questions, ["divprune:tokens=9"], open_results(file, {}))
    again = open_results(file, {}, resume=True)
    measured = answers.bench(
        asked_model(), asking_processor(), questions, ["divprune:tokens=9"], again, batches=(2, 4), **common
    )
    assert [row.metrics for row in measured.rows] == [row.metrics for row in first.rows]
    for row in measured.rows:
        assert [speed.batch for speed in row.speed] == [2, 4]
        assert all(speed.rounds == 1 and speed.noisy and speed.O is None for speed in row.speed)
        assert all(speed.images_per_second > 0 and speed.peak_memory > 0 for speed in row.speed)
        assert all(speed.S_over_F == pytest.approx(speed.S / row.F) for speed in row.speed)
    assert measured.rows[0].speed[0].S == 1
    assert measured.rows[1].speed[0].peak_memory < measured.rows[0].speed[0].peak_memory
    assert "images_per_second_b4" in file.with_suffix(".csv").read_text()
    assert open_results(file, {}, resume=True).rows == measured.rows


@pytest.mark.slow
def test_batches_and_dtypes(questions: list[answers.Question]) -> None:
    """Questions of different length: the batch size moves no figure by more than rounding."""
    one, three = (
        answers.bench(
            asked_model(), asking_processor(), questions, ["cdpruner:tokens=9"], batch_size=size, max_new_tokens=4
        )
        for size in (1, 3)
    )
    for alone_, together in zip(one.rows, three.rows, strict=True):
        assert alone_.metrics == pytest.approx(together.metrics, abs=1e-5)
    half = answers.bench(
        asked_model(),
        asking_processor(),
        questions,
        ["cdpruner:tokens=9"],
        max_new_tokens=4,
        runtime=Runtime(model_dtype="bfloat16"),
    )
    for row, whole in zip(half.rows, one.rows, strict=True):
        assert row.metrics["cache MB"] == whole.metrics["cache MB"] / 2 and row.gmacs == whole.gmacs


@pytest.mark.slow
def test_pictures_of_different_sizes_keep_the_same_share() -> None:
    from tests.helpers.languages import Row, named

    (language,) = named(["qwen2-vl"])

    class Sized(answers.RandomPrompts):
        def batch(self, questions: Sequence[answers.Question]) -> Any:
            sides = [64 if int(asked.question) % 2 else 96 for asked in questions]
            return language.inputs(*(Row(1, size=(side, side), seed=side) for side in sides))

    model = language.build().float()
    measured = answers.bench(model, Sized(model), answers.random_questions(2), ["divprune:keep=0.25"], max_new_tokens=2)
    tokens = [row.metrics["image tokens"] for row in measured.rows]
    assert tokens[0] == (16 + 36) / 2 and tokens[1:] == [(4 + 9) / 2] * 4
    assert [row.variant for row in measured.rows[2:]] == [f"{name}:keep=0.25" for name in CONTROLS]


@pytest.mark.slow
def test_random_prompts_are_answered_by_every_model_alike() -> None:
    model = asked_model()
    prompts = answers.RandomPrompts(model)
    one, other = (prompts.batch(answers.random_questions(2)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (one["input_ids"] == WORDS.index("<image>")).sum(dim=1).tolist() == [FEATURES] * 2
    measured = answers.bench(model, prompts, answers.random_questions(2), ["divprune:tokens=9"], max_new_tokens=2)
    assert "accuracy" not in measured.rows[0].metrics


def test_prompts_with_and_without_a_template() -> None:
    processor = asking_processor(None)
    processor.tokenizer.padding_side = "right"
    prompts = answers.ProcessorPrompts(processor)
    picture = Image.new("RGB", (60, 50))
    asked = [answers.Question(picture, words) for words in ("how many sevens", "how many")]
    given = prompts.batch(asked)
    assert given["attention_mask"].sum(dim=1).tolist() == [FEATURES + 3, FEATURES + 2]
    assert given["input_ids"][1, 0] == WORDS.index("<pad>") and processor.tokenizer.padding_side == "right"
    templated = answers.ProcessorPrompts(asking_processor()).batch(asked[:1])["input_ids"]
    words = ["<s>", "USER", *["<image>"] * FEATURES, "how", "many", "sevens", "ASSISTANT"]
    assert templated.tolist() == [[WORDS.index(word) for word in words]]
    with pytest.raises(TokensieveError, match="makes no prompt of 'what <image>'"):
        prompts.batch([answers.Question(picture, "what <image>", place="here, ")])
    with pytest.raises(TokensieveError, match="does not take images and text"):
        answers.ProcessorPrompts(processor.tokenizer)


def test_what_cannot_be_compared_is_refused(questions: list[answers.Question]) -> None:
    reduced = ts.apply(asked_model(), "prefix-grid:tokens=9")
    with pytest.raises(TokensieveError, match=r"methods already \(prefix-grid:tokens=9\)"):
        answers.bench(reduced, asking_processor(), questions, ["divprune:tokens=9"])
    with pytest.raises(TokensieveError, match="no question"):
        answers.bench(asked_model(), asking_processor(), [], ["divprune:tokens=9"])
