"""Types of options: what fits, how text is read, how types are said."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from tokensieve.methods._options import describe, fit, is_list_for_sites, read

Metric = Literal["x", "keys"]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, 1.0),
        (np.float32(0.5), float, 0.5),
        (np.int16(3), int, 3),
        (2, int | float, 2),
        (2.5, int | float, 2.5),
        ([1, 2], tuple[int, ...] | None, (1, 2)),
        (range(2), tuple[float, ...], (0.0, 1.0)),
        (None, int | None, None),
        (False, bool, False),
        ("x", Metric, "x"),
        ("x", Metric | float, "x"),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ("anything", Any, "anything"),
    ],
)
def test_what_fits(value: Any, kind: Any, expected: Any) -> None:
    found = fit(value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        ("1", int),
        ("12", tuple[int, ...]),
        ([1, "2"], tuple[int, ...]),
        (None, float),
        ("y", Metric),
        (1j, float),
    ],
)
def test_what_does_not(value: Any, kind: Any) -> None:
    with pytest.raises(TypeError, match=describe(kind)):
        fit(value, kind)


@pytest.mark.parametrize(
    ("word", "kind", "expected"),
    [
        ("0.5", float | tuple[float, ...], 0.5),
        ("[0.5,1]", float | tuple[float, ...], (0.5, 1.0)),
        ("None", int | None, None),
        ("TRUE", bool, True),
        ("keys", Metric, "keys"),
        ("none", Literal["none", "all"], "none"),
        ("12", str, "12"),
        ("none", str, "none"),
    ],
)
def test_words_are_read_as_their_type_wants(word: str, kind: Any, expected: Any) -> None:
    found = read(word, kind)
    assert found == expected and type(found) is type(expected)


def test_types_are_said_in_words() -> None:
    assert describe(float | tuple[float, ...]) == "a number or a list of numbers"
    assert describe(tuple[int, ...] | None) == "a list of whole numbers or none"
    assert describe(Metric) == "one of 'x', 'keys'"
    assert describe(bool) == "true or false"
    assert describe(tuple[Metric, ...]) == "a list of one of 'x', 'keys'"


def test_lists_for_sites_are_those_that_may_be_one_value_too() -> None:
    assert is_list_for_sites(float | tuple[float, ...])
    assert is_list_for_sites(int | tuple[int, ...] | None)
    assert not is_list_for_sites(tuple[int, ...] | None)
    assert not is_list_for_sites(float)
