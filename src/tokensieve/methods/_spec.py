"""One way to write a method down: NAME[:option=value[,value…]]… — commas sweep, ``+`` composes, brackets make a list.

Examples: ``bat:keep=0.5``, ``bat:keep=0.5,0.7,0.9`` (three variants), ``tome:r=4+tosa:keep=0.5`` (one composition),
``bat:sites=[1,3,5,7,9]:keep=0.79``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import Config
from tokensieve.methods._method import Method
from tokensieve.methods._options import read
from tokensieve.methods._registry import method_class, placed_class
from tokensieve.utils.names import nearest


def parse(spec: str) -> tuple[Method, ...]:
    """The one composition of methods for a ViT that ``spec`` names.

    Raises:
        TokensieveError: unknown method or option, a value of the wrong kind, or a spec that sweeps over several values.
    """
    return _one(spec, sweep(spec))


def parse_placed(spec: str) -> tuple[Config, ...]:
    """As ``parse``, of methods wherever they act: in a ViT, or around the decoder of a vision-language model."""
    return _one(spec, _swept(spec, placed_class))


def _one(spec: str, variants: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    if len(variants) != 1:
        raise TokensieveError(
            f"{spec!r} names {len(variants)} variants where one is expected: give one value per option, "
            "a list in brackets, or use ts.sweep"
        )
    return variants[0]


def sweep(spec: str) -> list[tuple[Method, ...]]:
    """Every composition for a ViT that ``spec`` names, in the order written; commas outside brackets sweep."""
    return _swept(spec, method_class)


def sweep_placed(spec: str) -> list[tuple[Config, ...]]:
    """As ``sweep``, of methods wherever they act."""
    return _swept(spec, placed_class)


def _swept(spec: str, class_of: Callable[[str], type[Any]]) -> list[tuple[Any, ...]]:
    if not isinstance(spec, str):
        raise TokensieveError(f"a spec is a text such as 'bat:keep=0.7', got {spec!r}")
    parts = spec.split("+")
    if not all(part.strip() for part in parts):
        raise TokensieveError(f"empty method in {spec!r}: write NAME[:option=value]…, composed with +")
    return [tuple(variant) for variant in itertools.product(*(_variants(part.strip(), class_of) for part in parts))]


def spell(methods: Config | Sequence[Config]) -> str:
    """The canonical spec of a method or a composition: each knob, and the options that differ from their defaults."""
    return "+".join(str(m) for m in ([methods] if isinstance(methods, Config) else methods))


def _variants(part: str, class_of: Callable[[str], type[Any]]) -> list[Any]:
    name, *settings = part.split(":")
    cls = class_of(name)
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
    try:
        return read(word, kind)
    except TypeError as error:
        raise TokensieveError(f"{name}: {option} must be {error}, got {word!r}") from None
