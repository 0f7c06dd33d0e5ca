"""The question model of the demo: its canvases, questions, words, and what the packaged weights know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokensieve.answers.generate import answers_of
from tokensieve.answers.prompts import ProcessorPrompts
from tokensieve.answers.score import is_right
from tokensieve.demo.questions import asking, canvases, words
from tokensieve.demo.questions.canvases import Canvas, Thing, canvas

pytest.importorskip("sklearn")
pytest.importorskip("transformers")

model = pytest.importorskip("tokensieve.demo.questions.model")

NUMBERS = ["zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines"]
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
ROWS, COLUMNS = {"top": 0, "bottom": 2}, {"left": 0, "right": 2}


@pytest.fixture(scope="module")
def seen() -> list[Canvas]:
    return [canvas("val", 3, index) for index in range(40)]


@pytest.fixture(scope="module")
def pair() -> Any:
    return model.clip_pair()


def answers(question: str, things: tuple[Thing, ...]) -> Iterator[str]:
    """Every answer that fits a question, by reading its words: one of them where it is exact."""
    name = r"the (?P<name>\w+)(?: one)?"
    colour = re.fullmatch(r"what colour is the (?P<name>\w+)", question)
    kind = re.fullmatch(r"which (?P<sort>digit|shape) is (?P<name>\w+)", question)
    many = re.fullmatch(r"how many (?P<name>\w+)(?: things)?", question)
    beside = re.fullmatch(rf"which (?P<sort>digit|shape) is (?P<side>left of|right of|above|below) {name}", question)
    place = re.fullmatch(r"what is in the (?P<place>[\w ]+?)(?: corner)?", question)
    where = re.fullmatch(rf"where is {name}", question)
    found = next(match for match in (colour, kind, many, beside, place, where) if match)
    wanted = found.groupdict().get("name", "")
    called = [thing for thing in things if wanted in (thing.kind, thing.colour)]
    if many:
        single = str(NUMBERS.index(wanted)) if wanted in NUMBERS else wanted.removesuffix("s")
        yield str(sum(single in (thing.kind, thing.colour) for thing in things))
    elif place:
        row, column = (next((at for word, at in side.items() if word in question), 1) for side in (ROWS, COLUMNS))
        there = [thing.kind for thing in things if (thing.row, thing.column) == (row, column)]
        yield from there or ["nothing"]
    for thing in called if not many else []:
        if colour:
            yield thing.colour
        elif kind and thing.kind.isdigit() == (found["sort"] == "digit"):
            yield thing.kind
        elif where:
            words_ = [
                word for side, at in ((ROWS, thing.row), (COLUMNS, thing.column)) for word in side if side[word] == at
            ]
            yield " ".join(words_) or "centre"
        elif beside:
            down, along = STEPS[found["side"]]
            other = [one for one in things if (one.row, one.column) == (thing.row + down, thing.column + along)]
            yield from (one.kind for one in other if one.kind.isdigit() == (found["sort"] == "digit"))


def test_answers_are_exact(seen: list[Canvas]) -> None:
    kinds = dict.fromkeys(asking.MAKERS, 0)
    for one in seen:
        for kind, questions in asking.asked(one).items():
            for question in questions:
                assert list(answers(question.question, one.things)) == [question.answer], (question, one.things)
                kinds[kind] += 1
    assert min(kinds.values()) > 40


def test_what_is_drawn_is_what_is_told(seen: list[Canvas]) -> None:
    colours = np.array(list(canvases.COLOURS.values()), dtype=float)
    for one in seen:
        for thing, ink in zip(one.things, one.ink, strict=True):
            rows, columns = np.nonzero(ink)
            assert set(rows // 4) == {thing.row}
            assert set(columns // 4) == {thing.column}
            y, x = np.unravel_index(ink.argmax(), ink.shape)
            patch = one.pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1, 3).astype(float)
            far = np.linalg.norm(patch[:, None] - colours, axis=2)
            of_object = far.min(axis=1) < 60  # grey strokes and the ground are farther from every colour
            nearest = np.bincount(far.argmin(axis=1)[of_object]).argmax()
            assert list(canvases.COLOURS)[nearest] == thing.colour


def test_a_canvas_is_a_function_of_split_seed_and_index(seen: list[Canvas]) -> None:
    assert np.array_equal(canvas("val", 3, 5).pixels, seen[5].pixels)
    for other in (canvas("train", 3, 5), canvas("val", 4, 5), canvas("val", 3, 6)):
        assert not np.array_equal(other.pixels, seen[5].pixels)


def test_prompts_hold_every_word_and_the_image(seen: list[Canvas]) -> None:
    prompts = ProcessorPrompts(words.processor())
    for one in seen[:4]:
        for question in asking.one_of_each(one, np.random.default_rng(0)):
            text = prompts.text(f"{question.question}?")
            ids = prompts.processor(images=one.picture, text=text, return_tensors="pt")["input_ids"][0].tolist()
            assert ids.count(words.NUMBERS[words.IMAGE]) == model.FEATURES
            plain = [words.WORDS[number] for number in ids if words.WORDS[number] not in words.SPECIAL]
            assert " ".join(plain) == question.question
            assert ids[0] == words.NUMBERS[words.BEGIN]
            assert ids[-1] == words.NUMBERS[words.ANSWER]
            answer = prompts.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            assert prompts.texts([answer]) == [question.answer]


def test_the_packaged_weights_answer_held_out_questions() -> None:
    llava, prompts = model.question_model(), ProcessorPrompts(words.processor())
    questions = asking.held_out(60, seed=11)
    from tokensieve.language.host import host_of

    with torch.inference_mode():
        found = answers_of(llava, host_of(llava, "a test"), prompts.batch(questions), 4)
    texts = prompts.texts(found.tokens)
    right = sum(is_right(text, question.answers) for text, question in zip(texts, questions, strict=True))
    assert right >= 51, list(zip(texts, questions, strict=True))


def test_the_file_is_small_and_the_pair_shares_the_tower(pair: Any) -> None:
    assert model.WEIGHTS.stat().st_size <= 3_000_000
    tower = model.question_model().model.vision_tower.state_dict()
    own = pair.vision_model.state_dict()
    assert set(tower) == set(own)
    assert all(torch.equal(tower[name], own[name]) for name in tower)


def test_the_pair_finds_what_words_name(seen: list[Canvas], pair: Any) -> None:
    inputs = words.processor().image_processor([one.picture for one in seen], return_tensors="pt")
    tokenizer = words.tokenizer(end=True)
    texts = [f"{colour} {kind}" for colour in canvases.COLOURS for kind in canvases.KINDS]
    with torch.inference_mode():
        output = pair.vision_model(**inputs).last_hidden_state
        projected = F.normalize(pair.visual_projection(pair.vision_model.post_layernorm(output)), dim=2)
        given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        named = F.normalize(pair.get_text_features(given["input_ids"]).pooler_output, dim=1)
    cosines = projected @ named.T
    hits, ranks = [], []
    for one, own in zip(seen, cosines, strict=True):
        there = torch.tensor([any(text == f"{thing.colour} {thing.kind}" for thing in one.things) for text in texts])
        whole, patches = own[0], own[1:]
        ranks.append(float((whole[there].unsqueeze(1) > whole[~there]).float().mean()))
        for thing, ink in zip(one.things, one.ink, strict=True):
            best = int(patches[:, texts.index(f"{thing.colour} {thing.kind}")].argmax())
            hits.append(bool(ink.reshape(-1)[best] > 0))
    assert np.mean(ranks) > 0.9  # the class token tells what is on the canvas
    assert np.mean(hits) > 0.9  # and the likeliest patch lies on it


@pytest.mark.slow
def test_what_is_saved_runs_in_a_pipeline(tmp_path: Path, seen: list[Canvas]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    folder = str(model.save_questions(tmp_path / "questions"))
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    expected = model.question_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"
    pipe = pipeline("image-text-to-text", model=folder)
    question = asking.asked(seen[0])["where"][0]
    content = [{"type": "image", "image": seen[0].picture}, {"type": "text", "text": f"{question.question}?"}]
    answer = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert answer[0]["generated_text"].strip() == question.answer
