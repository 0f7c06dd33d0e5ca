"""Questions about images with the answers that count as right: a folder with a line for each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.data.pictures import UnknownPixelsError, in_mode
from tokensieve.data.stream import evenly
from tokensieve.errors import TokensieveError

FILES = ("questions.jsonl", "questions.csv")
COLUMNS = ("image", "question", "answer")
EXAMPLE = '{"image": "0001.png", "question": "what is in the corner?", "answer": "7"}'


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        image: its file, or the picture itself.
        question: in words.
        answers: each of them is right; empty where none is known.
        place: where it was read, for messages.
    """

    image: Path | Image.Image
    question: str
    answers: tuple[str, ...] = ()
    place: str = ""

    def picture(self) -> Image.Image:
        """The image in RGB; rotation in EXIF is not followed, as in timm.

        Raises:
            TokensieveError: the file cannot be read as an image.
        """
        try:
            if isinstance(self.image, Image.Image):
                return in_mode(self.image, "RGB")
            with Image.open(self.image) as opened:
                return in_mode(opened, "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, UnknownPixelsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TokensieveError(f"{self.place}the image {self.image} cannot be read: {reason}") from error


def read_questions(folder: str | Path, limit: int | None = None) -> list[Question]:
    """The questions in a folder.

    ``questions.jsonl`` has a line such as ``{"image": "0001.png", "question": "…", "answer": "…"}`` for each, where
    ``answer`` may be a list of answers that are all right; ``questions.csv`` has these three columns, and a line for
    each question. Images are named relative to the folder.

    Args:
        folder: that holds one of the two files.
        limit: how many to take, spread evenly; default all.

    Raises:
        TokensieveError: no such folder or file, nothing in it, or a line that is not such; names the line.
    """
    root = Path(folder)
    if not root.is_dir():
        raise TokensieveError(f"{str(folder)!r} is not a folder: give one with {' or '.join(FILES)} in it")
    found = [root / name for name in FILES if (root / name).is_file()]
    if len(found) != 1:
        has = "has neither" if not found else "has both"
        raise TokensieveError(f"{root} {has} {FILES[0]} {'or' if not found else 'and'} {FILES[1]}: give one of the two")
    file = found[0]
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokensieveError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = list(_of_json(file, text) if file.suffix == ".jsonl" else _of_csv(file, text))
    if not lines:
        raise TokensieveError(f"{file} has no question: expected lines such as {EXAMPLE}")
    questions = [_question(root, where, entry) for where, entry in lines]
    return [questions[place] for place in evenly(len(questions), limit)]


def _of_json(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}: "
        try:
            yield where, json.loads(line)
        except ValueError as error:
            raise TokensieveError(f"{where}not JSON ({error}): expected a line such as {EXAMPLE}") from error


def _of_csv(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    complete = 0
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise TokensieveError(
                f"{file}, line 1: no column {missing[0]!r}; expected the columns {', '.join(COLUMNS)}, got "
                f"{', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        complete = reader.line_num
        for entry in reader:
            complete = reader.line_num
            where = f"{file}, line {complete}: "
            if None in entry:
                raise TokensieveError(f"{where}more fields than the {len(reader.fieldnames or ())} columns")
            yield where, {name: entry[name] for name in COLUMNS if entry[name] is not None}
    except csv.Error as error:
        raise TokensieveError(f"{file}, line {complete + 1}: not CSV ({error})") from error


def _question(root: Path, where: str, entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise TokensieveError(f"{where}expected an object such as {EXAMPLE}, got {json.dumps(entry)[:60]}")
    missing = [name for name in COLUMNS if name not in entry]
    if missing:
        raise TokensieveError(f"{where}it has no {missing[0]!r}: expected {', '.join(COLUMNS)}")
    answers = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
    given = {"image": [entry["image"]], "question": [entry["question"]], "answer": answers}
    for name, values in given.items():
        if not values or not all(isinstance(value, str) and value.strip() for value in values):
            what = "a text, or a list of texts" if name == "answer" else "a text"
            raise TokensieveError(f"{where}{name!r} must be {what}, got {json.dumps(entry[name])[:60]}")
    image = root / entry["image"]
    if not image.is_file():
        raise TokensieveError(f"{where}there is no image {str(image)!r}")
    return Question(image, entry["question"], tuple(answers), where)
