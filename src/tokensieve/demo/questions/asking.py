"""Questions about a canvas whose answers are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from numpy.random import Generator, default_rng

from tokensieve.data.questions import Question
from tokensieve.demo.digits import Split
from tokensieve.demo.questions.canvases import CELLS, COLOURS, KINDS, Canvas, Thing, canvas

_PLURALS = "zeros ones twos threes fours fives sixes sevens eights nines circles squares triangles"
PLURALS = dict(
    zip(
        KINDS,
        _PLURALS.split(),
        strict=True,
    )
)
PLACES = {
    (0, 0): "top left", (0, 1): "top", (0, 2): "top right", (1, 0): "left", (1, 1): "centre", (1, 2): "right",
    (2, 0): "bottom left", (2, 1): "bottom", (2, 2): "bottom right",
}  # fmt: skip
"""The answer to where something is, by cell."""
BESIDE = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
MOST = 3  # the highest count that is asked for


@dataclass(frozen=True)
class Asked:
    """A question about a canvas.

    Attributes:
        kind: "colour", "kind", "count", "beside", "corner" or "where".
        question, answer: in words.
        about: the objects that the question names or that answer it, by their place among ``Canvas.things``.
        cells: the cells that it names.
    """

    kind: str
    question: str
    answer: str
    about: tuple[int, ...] = ()
    cells: tuple[tuple[int, int], ...] = ()


def asked(seen: Canvas) -> dict[str, list[Asked]]:
    """Every question that a canvas answers, by kind. Those that name one object are asked where there is one such."""
    found: dict[str, list[Asked]] = {}
    for kind, make in MAKERS.items():
        found[kind] = list(make(seen.things))
    return found


def one_of_each(seen: Canvas, rng: Generator, each: int = 1) -> list[Asked]:
    """Questions of every kind about a canvas, ``each`` of them where there are so many."""
    chosen = []
    for questions in asked(seen).values():
        places = rng.permutation(len(questions))[:each]
        chosen += [questions[place] for place in places]
    return chosen


def held_out(count: int, seed: int = 0) -> list[Question]:
    """Questions about canvases that no training saw, one a canvas, kinds in turn.

    Args:
        count: how many.
        seed: of the canvases; of training none is "val", whatever its seed.
    """
    return [question for _, question in held_out_kinds(count, seed)]


def held_out_kinds(count: int, seed: int = 0, split: Split = "val") -> list[tuple[str, Question]]:
    """As ``held_out``, each with its kind."""
    chosen: list[tuple[str, Question]] = []
    index = 0
    while len(chosen) < count:
        seen = canvas(split, seed, index)
        kind = list(MAKERS)[len(chosen) % len(MAKERS)]
        questions = asked(seen)[kind]
        if questions:
            one = questions[default_rng((seed, index, 3)).integers(len(questions))]
            chosen.append((kind, Question(seen.picture, f"{one.question}?", (one.answer,))))
        index += 1
    return chosen


def _colour(things: Sequence[Thing]) -> Iterator[Asked]:
    for place, thing in _unique(things, "kind"):
        yield Asked("colour", f"what colour is the {thing.kind}", thing.colour, (place,))


def _kind(things: Sequence[Thing]) -> Iterator[Asked]:
    for place, thing in _unique(things, "colour"):
        yield Asked("kind", f"which {_sort(thing)} is {thing.colour}", thing.kind, (place,))


def _count(things: Sequence[Thing]) -> Iterator[Asked]:
    names = [(PLURALS[kind], "kind", kind) for kind in KINDS]
    names += [(f"{colour} things", "colour", colour) for colour in COLOURS]
    by_number: dict[int, list[Asked]] = {}
    for words, attribute, value in names:
        about = tuple(place for place, thing in enumerate(things) if getattr(thing, attribute) == value)
        by_number.setdefault(len(about), []).append(Asked("count", f"how many {words}", str(len(about)), about))
    least = max(1, len(by_number.get(2, ())) + len(by_number.get(3, ())))
    for number, questions in by_number.items():
        if number <= MOST:  # the frequent counts no more often than the others
            step = 1 if number > 1 else max(1, len(questions) // least)
            yield from questions[::step]


def _beside(things: Sequence[Thing]) -> Iterator[Asked]:
    places = {(thing.row, thing.column): place for place, thing in enumerate(things)}
    for attribute, words in (("colour", "the {} one"), ("kind", "the {}")):
        for place, thing in _unique(things, attribute):
            for side, (down, along) in BESIDE.items():
                other = places.get((thing.row + down, thing.column + along))
                if other is not None:
                    reference = words.format(getattr(thing, attribute))
                    question = f"which {_sort(things[other])} is {side} {reference}"
                    yield Asked("beside", question, things[other].kind, (place, other))


def _corner(things: Sequence[Thing]) -> Iterator[Asked]:
    places = {(thing.row, thing.column): place for place, thing in enumerate(things)}
    for cell, name in PLACES.items():
        if sum(cell) % 2 == 0:  # the corners and the centre
            about = (places[cell],) if cell in places else ()
            answer = things[about[0]].kind if about else "nothing"
            where = name if cell == (CELLS // 2, CELLS // 2) else f"{name} corner"
            yield Asked("corner", f"what is in the {where}", answer, about, (cell,))


def _where(things: Sequence[Thing]) -> Iterator[Asked]:
    for attribute, words in (("colour", "the {} one"), ("kind", "the {}")):
        for place, thing in _unique(things, attribute):
            question = f"where is {words.format(getattr(thing, attribute))}"
            yield Asked("where", question, PLACES[thing.row, thing.column], (place,))


MAKERS: dict[str, Callable[[Sequence[Thing]], Iterator[Asked]]] = {
    "colour": _colour, "kind": _kind, "count": _count, "beside": _beside, "corner": _corner, "where": _where,
}  # fmt: skip
"""What is asked, by kind."""


def _unique(things: Sequence[Thing], attribute: str) -> list[tuple[int, Thing]]:
    """The objects that no other resembles in this."""
    values = [getattr(thing, attribute) for thing in things]
    return [(place, thing) for place, thing in enumerate(things) if values.count(getattr(thing, attribute)) == 1]


def _sort(thing: Thing) -> str:
    return "digit" if thing.digit else "shape"
