"""A verb of the command line: the fields of a dataclass are its options, and its errors are one sentence each."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from tokensieve.cli.errors import reported
from tokensieve.utils.options import Changes, Option

Options = TypeVar("Options")
Verb = Callable[..., None]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show a traceback when something fails.")]


@dataclass(frozen=True)
class _Given:
    """One option of a command, and where what is given for it goes: a field, or an entry of a field."""

    parameter: inspect.Parameter
    field: str
    key: str | None
    many: bool


def verb(kind: type[Options], *, without: Sequence[str] = ()) -> Callable[[Callable[[Options], None]], Verb]:
    """Make a command of a function of options, with one option for each field of the dataclass ``kind``.

    Args:
        kind: the options. A field is one where its annotation carries an ``Option``, or several where it carries
            ``Changes``. They are listed as the classes that ``kind`` derives from are, its own first.
        without: fields that this command has no option for; they keep their defaults.
    """

    def decorate(function: Callable[[Options], None]) -> Verb:
        offered = [given for given in _options_of(kind) if given.field not in without]

        def run(verbose: bool = False, **given: Any) -> None:
            values: dict[str, Any] = {}
            for option in offered:
                value = given[option.parameter.name]
                if option.many:
                    value = tuple(value or ())
                if option.key is None:
                    values[option.field] = value
                elif value not in (None, ()):
                    values.setdefault(option.field, {})[option.key] = value
            function(kind(**values))

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        shown = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*(option.parameter for option in offered), shown]
        )
        return reported(run)

    return decorate


def _options_of(kind: type[Any]) -> Iterator[_Given]:
    """The options of a dataclass, those of the first class that it derives from first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    names = (name for cls in kind.__mro__ for name in inspect.get_annotations(cls) if name in defaults)
    for name in dict.fromkeys(names):
        for carried in typing.get_args(hints[name])[1:]:
            if isinstance(carried, Option):
                yield _option(name, name, None, hints[name], carried, defaults[name])
            elif isinstance(carried, Changes):
                yield from _changes(name, carried.of)


def _changes(field: str, kind: type[Any]) -> Iterator[_Given]:
    """The fields of ``kind`` as options that may be left out."""
    for key, hint in typing.get_type_hints(kind, include_extras=True).items():
        option = next((carried for carried in typing.get_args(hint)[1:] if isinstance(carried, Option)), None)
        if option is not None:
            yield _option(f"{field}_{key}", field, key, hint, option, None)


def _option(name: str, field: str, key: str | None, hint: Any, option: Option, default: Any) -> _Given:
    """An option as typer declares it: what holds several values is a list there, and what is read by us is anything."""
    asked = typing.get_args(hint)[0]
    many = typing.get_origin(asked) is tuple and option.parser is None
    if many:
        asked, default = list[typing.get_args(asked)[0]], None if default == () else default  # type: ignore[misc]
    if default is None:
        asked = asked | None
    declared: dict[str, Any] = {
        "help": option.help.replace("[", "\\["),  # which rich would read as markup
        "metavar": option.metavar,
        "min": option.min,
        "rich_help_panel": option.panel,
    }
    if option.parser is not None:
        asked, declared["parser"] = Any, _parser(option.parser)
    flag = "--" + (key or field).replace("_", "-")
    info = typer.Argument(**declared) if option.argument else typer.Option(*(option.names or (flag,)), **declared)
    parameter = inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        annotation=Annotated[asked, info],
    )
    return _Given(parameter, field, key, many)


def _parser(parser: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parser`` with its complaint as typer says it."""

    def parse(given: str) -> Any:
        try:
            return parser(str(given))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse
