"""How a field of a dataclass is asked for on the command line: what ``Annotated`` carries beside its type.

Dataclasses of options import nothing heavy, so that their help is shown without waiting for torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Option:
    """The option of one field.

    Attributes:
        help: what it means, as users read it.
        names: as it is typed; empty for the name of the field with two dashes.
        metavar: what stands for its value in the help.
        min: the least number that is taken.
        panel: the heading under which the help lists it.
        parser: makes the value of what is typed, and raises ValueError with what it expected.
        argument: whether it is told by its place and not by a name.
    """

    help: str
    _: KW_ONLY
    names: tuple[str, ...] = ()
    metavar: str | None = None
    min: float | None = None
    panel: str | None = None
    parser: Callable[[str], Any] | None = None
    argument: bool = False


@dataclass(frozen=True)
class Changes:
    """A field that holds those values of another dataclass, by name, that are asked for; each is an option of its own.

    Attributes:
        of: the dataclass, whose fields with an ``Option`` are meant.
    """

    of: type[Any]


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a command that has none."""


def values_of(options: Any, kind: type[Any]) -> dict[str, Any]:
    """Those values of ``options`` that are fields of ``kind``, which it derives from, by name."""
    return {field.name: getattr(options, field.name) for field in fields(kind)}
