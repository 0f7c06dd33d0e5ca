"""Folders of questions about images, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokensieve.data.questions import Question, read_questions
from tokensieve.errors import TokensieveError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two images."""
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGBA", (4, 5), (number, 10, 20, 255)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def line(image: str = "images/0.png", question: str = "what is it?", answer: object = "a cat") -> str:
    return json.dumps({"image": image, "question": question, "answer": answer})


def test_lines_of_json(folder: Path) -> None:
    second = line("images/1.png", "wie heißt das?", ["Hund", "ein Hund"])
    (folder / "questions.jsonl").write_text(f"\ufeff{line()}\r\n\r\n{second}", encoding="utf-8")
    one, other = read_questions(folder)
    assert one.answers == ("a cat",) and other.answers == ("Hund", "ein Hund")
    assert other.question == "wie heißt das?" and other.image == folder / "images" / "1.png"
    picture = other.picture()
    assert picture.mode == "RGB" and np.asarray(picture)[0, 0].tolist() == [1, 10, 20]
    assert Question(picture, "?").picture().size == (4, 5)
    assert [found.image for found in read_questions(folder, 1)] == [one.image]


def test_columns(folder: Path) -> None:
    rows = 'answer,id,image,question\r\ncat,1,images/0.png,"what, then?"\r\n\r\n"a\r\ndog",2,images/1.png,and this?\r\n'
    (folder / "questions.csv").write_bytes(rows.encode())
    one, other = read_questions(folder)
    assert (one.question, one.answers) == ("what, then?", ("cat",)) and other.answers == ("a\r\ndog",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no question"),
        (f"{line()}\n{{", "line 2: not JSON"),
        (f"\n{line()}\n[1]", "line 3: expected an object"),
        ('{"image": "images/0.png", "answer": "x"}', "line 1: it has no 'question'"),
        (line(answer=[]), "line 1: 'answer' must be a text, or a list of texts, got []"),
        (line(answer=7), "line 1: 'answer' must be a text, or a list of texts, got 7"),
        (line(question=" "), "line 1: 'question' must be a text"),
        (f"{line()}\n{line('images/9.png')}", "line 2: there is no image"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, content: str, said: str) -> None:
    (folder / "questions.jsonl").write_text(content)
    with pytest.raises(TokensieveError) as error:
        read_questions(folder)
    assert said in str(error.value) and "questions.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: no column 'image'"),
        ("image,question\n", "line 1: no column 'answer'"),
        ("image,question,answer\n", "has no question"),
        ("image,question,answer\nimages/0.png,what?\n", "line 2: it has no 'answer'"),
        ("image,question,answer\nimages/0.png,what?,a,b\n", "line 2: more fields"),
        ('image,question,answer\nimages/0.png,"what?', "line 2: not CSV"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, content: str, said: str) -> None:
    (folder / "questions.csv").write_text(content)
    with pytest.raises(TokensieveError, match=r"questions\.csv") as error:
        read_questions(folder)
    assert said in str(error.value)


def test_wrong_folders(folder: Path) -> None:
    with pytest.raises(TokensieveError, match="is not a folder"):
        read_questions(folder / "absent")
    with pytest.raises(TokensieveError, match="has neither"):
        read_questions(folder)
    (folder / "questions.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TokensieveError, match="is not UTF-8"):
        read_questions(folder)
    (folder / "questions.csv").write_text("")
    with pytest.raises(TokensieveError, match="has both"):
        read_questions(folder)
    (folder / "images" / "0.png").write_text("text")
    with pytest.raises(TokensieveError, match=r"x: the image .* cannot be read"):
        Question(folder / "images" / "0.png", "?", place="x: ").picture()
