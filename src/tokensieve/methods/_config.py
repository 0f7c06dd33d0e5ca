"""What every method is written down as: a frozen config with a name, checked options and a card."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from tokensieve.errors import TokensieveError
from tokensieve.methods import _options as option


@dataclass(frozen=True, kw_only=True)
class Config:
    """A method's name and options, whatever it acts on. A subclass is one frozen dataclass, its docstring is its card.

    Options are checked against their annotations when a config is made; lists become tuples, so that it stays hashable.
    A subclass that checks more does so in ``__post_init__``, after ``super().__post_init__()``.

    Class attributes:
        name: what users type; default the class name in lower case.
        version: raised when the same config starts to give other answers; stored with saved models.
        knob: the option that sets how much it removes ("keep", "r", or "threshold" for a cosine), or None.
        paper: (title, authors, year, arXiv number or DOI), or None for a control.
        trained: True when it has learned parts that must be fitted before it beats its controls.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    knob: ClassVar[str | None] = None
    paper: ClassVar[tuple[str, str, int, str] | None] = None
    trained: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    def __post_init__(self) -> None:
        option.fit_fields(self, self.option_types(), self.name)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict: name, version and every option."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name, "version": self.version, "options": options}

    @classmethod
    def card(cls) -> str:
        """The method's card: its docstring, dedented."""
        return inspect.getdoc(cls) or ""

    @classmethod
    def option_types(cls) -> dict[str, Any]:
        """Option name to its type, in order."""
        hints = typing.get_type_hints(cls)
        return {f.name: hints[f.name] for f in dataclasses.fields(cls)}

    def __str__(self) -> str:
        parts = [self.name]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value != f.default or (f.name == self.knob and value is not None):
                parts.append(f"{f.name}={_spell(value)}")
        return ":".join(parts)


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_spell(v) for v in value) + "]"
    return str(value)


def require(condition: bool, config: Config, option: str, expected: str) -> None:
    """Raise unless ``condition``: names the option, what was given and what was expected."""
    if not condition:
        raise TokensieveError(f"{config.name}: {option} must be {expected}, got {getattr(config, option)!r}")
