"""The card of a method, which is the docstring of its class, in parts: its first sentence, its prose, its options."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tokensieve.methods._config import Config
from tokensieve.methods._method import Point
from tokensieve.methods._options import describe
from tokensieve.methods.language._input import InputMethod
from tokensieve.methods.language._prefix import PrefixMethod

ACTS: dict[Point, str] = {
    "before": "before the block",
    "middle": "between attention and MLP",
    "after": "after the block",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a method, in words: its name, type, default ("required" where there is none) and meaning."""

    name: str
    type: str
    default: str
    meaning: str


def place(method: type[Config]) -> str:
    """Where a method of a vision-language model acts, in words."""
    if issubclass(method, InputMethod):
        return "in front of the tower"
    return "in front of the decoder" if issubclass(method, PrefixMethod) else "in the decoder"


def summary(method: type[Config]) -> str:
    """The first sentence of the card, without its full stop."""
    return " ".join(method.card().split("\n\n")[0].split()).rstrip(".")


def prose(method: type[Config]) -> list[str]:
    """The paragraphs of the card without its list of options."""
    return [part.strip() for part in re.split(r"\n\s*\n", _split(method)[0]) if part.strip()]


def options(method: type[Config]) -> list[Option]:
    """The options of a method in order."""
    listed = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", _split(method)[1], flags=re.M)
    meanings = {name: " ".join(text.split()) for names, text in listed for name in names.split(", ")}
    kinds = method.option_types()
    found = []
    for field in dataclasses.fields(method):
        default = "required" if field.default is dataclasses.MISSING else _spell(field.default)
        found.append(Option(field.name, describe(kinds[field.name]), default, meanings.get(field.name, "")))
    return found


def _split(method: type[Config]) -> tuple[str, str]:
    """The card's prose and its list of options."""
    before, _, listed = method.card().partition("\nOptions:\n")
    listed, _, after = listed.partition("\n\n")
    return f"{before}\n\n{after}", listed


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(map(_spell, value)) + "]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
