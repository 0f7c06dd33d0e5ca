"""Wrong input ends in one sentence and exit code 2; a traceback only when asked for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import typer
from rich.markup import escape

from tokensieve.cli.output import errors
from tokensieve.errors import TokensieveError


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with its errors turned into one sentence on standard error and exit code 2.

    A command that takes ``verbose`` lets the traceback through when it is set.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                command(*args, **kwargs)
            except (TokensieveError, OSError) as error:
                if kwargs.get("verbose"):
                    raise
                errors.print(f"[bold red]Error:[/] {escape(_sentence(error))}", soft_wrap=True, highlight=False)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                if kwargs.get("verbose"):
                    raise
                errors.print("stopped")
                raise typer.Exit(130) from None

    return run


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename!r}" if error.filename else ""
        return f"cannot read or write{where}: {error.strerror}"
    return " ".join(str(error).split())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    errors.print(f"[yellow]Warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)
