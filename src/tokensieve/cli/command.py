"""One list of options for several commands: the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

Command = Callable[..., None]


def with_options(options: type[Any]) -> Callable[[Command], Command]:
    """Give a command one option for each field of the dataclass ``options``, in place of its first parameter.

    A field is annotated as a parameter of a command would be, with ``typer.Option`` or ``typer.Argument``; the
    command's other parameters follow as they are.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    fields = dataclasses.fields(options)

    def decorate(command: Command) -> Command:
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields
        ]
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        def run(**given: Any) -> None:
            request = options(**{field.name: given.pop(field.name) for field in fields})
            command(request, **given)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*shared, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own)]
        )
        return run

    return decorate
