"""One way to write a method down: NAME[:option=value[,value…]]… — commas sweep, ``+`` composes, brackets make a list.

Examples: ``bat:keep=0.5``, ``bat:keep=0.5,0.7,0.9`` (three variants), ``tome:r=4+tosa:keep=0.5`` (one composition),
``bat:sites=[1,3,5,7,9]:keep=0.79``.
"""

from __future__ import annotations

import ast
import itertools
import types
import typing
from collections.abc import Sequence
from typing import Any

from tokensieve.errors import TokensieveError
from tokensieve.method import Method
from tokensieve.registry import method_class, nearest


def method(spec: str) -> tuple[Method, ...]:
    """The one composition of methods that ``spec`` names.

    Raises:
        TokensieveError: unknown method or option, a value of the wrong kind, or a spec that sweeps over several values.
    """
    variants = sweep(spec)
    if len(variants) != 1:
        raise TokensieveError(
            f"{spec!r} names {len(variants)} variants where one is expected: give one value per option, "
            "a list in brackets, or use ts.sweep"
        )
    return variants[0]


def sweep(spec: str) -> list[tuple[Method, ...]]:
    """Every composition that ``spec`` names, in the order written; commas outside brackets sweep."""
    parts = spec.split("+")
    if not all(part.strip() for part in parts):
        raise TokensieveError(f"empty method in {spec!r}: write NAME[:option=value]…, composed with +")
    return [tuple(variant) for variant in itertools.product(*(_variants(part.strip()) for part in parts))]


def spell(methods: Sequence[Method]) -> str:
    """The canonical spec of a composition: options that differ from their defaults, in order."""
    return "+".join(str(m) for m in methods)


def _variants(part: str) -> list[Method]:
    name, *settings = part.split(":")
    cls = method_class(name)
    types_of = cls.option_types()
    choices: dict[str, list[Any]] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals or not text:
            raise TokensieveError(f"{part!r}: {setting!r} is not option=value")
        if option not in types_of:
            raise TokensieveError(
                f"{name} has no option {option!r}{nearest(option, types_of)}; it has {', '.join(types_of)}"
            )
        if option in choices:
            raise TokensieveError(f"{part!r} sets {option!r} twice")
        choices[option] = [_value(name, option, word, types_of[option]) for word in _split(text)]
    return [cls(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def _split(text: str) -> list[str]:
    words, depth, word = [], 0, ""
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            words.append(word)
            word = ""
        else:
            word += char
    return [*words, word]


def _value(name: str, option: str, word: str, kind: Any) -> Any:
    expected = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if word in ("none", "None") and type(None) in expected:
        return None
    if word.lower() in ("true", "false") and bool in expected:
        return word.lower() == "true"
    literals = [v for k in expected if typing.get_origin(k) is typing.Literal for v in typing.get_args(k)]
    if literals:
        if word in literals:
            return word
        if str in map(type, literals) and not any(k in (int, float) for k in expected):
            raise TokensieveError(f"{name}: {option} must be one of {', '.join(map(repr, literals))}, got {word!r}")
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word
    if isinstance(value, list):
        value = tuple(value)
    if _fits(value, expected):
        return float(value) if type(value) is int and float in expected and int not in expected else value
    raise TokensieveError(f"{name}: {option} must be {_describe(kind)}, got {word!r}")


def _fits(value: Any, expected: Sequence[Any]) -> bool:
    for kind in expected:
        plain = typing.get_origin(kind) or kind
        if plain is tuple:
            inner = [k for k in typing.get_args(kind) if k is not Ellipsis]
            if isinstance(value, tuple) and all(_fits(v, inner) for v in value):
                return True
        elif plain is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif isinstance(plain, type) and isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
            return True
    return False


def _describe(kind: Any) -> str:
    text = str(kind.__name__ if isinstance(kind, type) else kind)
    return text.replace("typing.", "").replace("NoneType", "none").replace("tuple", "list").replace(", ...", "")
