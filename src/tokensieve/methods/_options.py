"""The types that options of methods have: what fits one, how it is read from text, how it is said to a user.

An option is a number, a whole number, true or false, a text, one of several words, a list of such, or none, alone or
joined by ``|``. Its annotation is all that is written down.
"""

from __future__ import annotations

import ast
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from tokensieve.errors import TokensieveError

SAID = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
    type(None): ("none", "none"),
}


def fit(value: Any, kind: Any) -> Any:
    """``value`` as an option of type ``kind`` holds it: numbers of any library as Python's, sequences as tuples.

    Raises:
        TypeError: it is something else; says what was expected.
    """
    # Whole numbers first: 2 is one where both kinds of number are allowed.
    for alternative in sorted(_alternatives(kind), key=lambda part: part is float):
        try:
            return _fit_one(value, alternative)
        except TypeError:
            continue
    raise TypeError(describe(kind))


def fit_fields(config: Any, kinds: Mapping[str, Any], named: str) -> None:
    """Let every field of a frozen dataclass hold its value as ``fit`` gives it.

    Args:
        config: the dataclass, changed in place while it is made.
        kinds: the type of each field.
        named: what errors call it.

    Raises:
        TokensieveError: a value that does not fit; names the field, what was expected and what was given.
    """
    for name, kind in kinds.items():
        given = getattr(config, name)
        try:
            object.__setattr__(config, name, fit(given, kind))
        except TypeError as error:
            raise TokensieveError(f"{named}: {name} must be {error}, got {given!r}") from None


def read(word: str, kind: Any) -> Any:
    """What ``word`` of a spec means for an option of type ``kind``.

    Raises:
        TypeError: nothing that fits; says what was expected.
    """
    meant = {"none": None, "true": True, "false": False}
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word
    for candidate in (meant.get(word.lower(), value), word):
        try:
            return fit(candidate, kind)
        except TypeError:
            continue
    raise TypeError(describe(kind))


def describe(kind: Any) -> str:
    """A type as a user would say it: "a number or a list of numbers", "one of 'x', 'keys'"."""
    return " or ".join(_said(part) for part in _alternatives(kind))


def is_list_for_sites(kind: Any) -> bool:
    """Whether ``kind`` is a value or a list of such values, which is one for each site."""
    alternatives = _alternatives(kind)
    return any(typing.get_origin(part) is tuple and typing.get_args(part)[0] in alternatives for part in alternatives)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    joined = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if joined else (kind,)


def _fit_one(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(fit(entry, typing.get_args(kind)[0]) for entry in value)
        fits = False
    elif kind in (int, float):
        number: type = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, number) and not isinstance(value, bool):
            return kind(value)
        fits = False
    else:
        fits = kind is Any or isinstance(value, typing.get_origin(kind) or kind)
    if not fits:
        raise TypeError(describe(kind))
    return value


def _said(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return f"a list of {SAID[inner][1] if inner in SAID else describe(inner)}"
    return SAID[kind][0] if kind in SAID else str(getattr(kind, "__name__", kind))
