"""Wrong input ends in one sentence and exit code 2, anything unforeseen in code 1; a traceback only when asked for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import typer

from tokensieve.errors import TokensieveError
from tokensieve.utils.processes import spokesman


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with its errors turned into one sentence on standard error and exit code 2.

    A command that takes ``verbose`` lets the traceback through when it is set. Of processes that were launched together
    one says the sentence.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                command(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                if kwargs.get("verbose"):
                    raise
                _print("stopped")
                raise typer.Exit(130) from None
            except Exception as error:
                if kwargs.get("verbose"):
                    raise
                sentence, code = _explained(error)
                file = spokesman()
                if file is not None:
                    _print(sentence, "[bold red]Error:[/] ", file)
                raise typer.Exit(code) from None

    return run


def _explained(error: Exception) -> tuple[str, int]:
    """One sentence and the exit code: 2 for what the user can change, 1 for what was not foreseen."""
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename!r}" if error.filename else ""
        return f"cannot read or write{where}: {error.strerror}", 2
    text = " ".join(str(error).split())
    if isinstance(error, (TokensieveError, OSError)):
        return text, 2
    exhausted = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be loaded
    if exhausted or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "out of memory: give smaller batches (--batch-size, --speed-batch-size) or a smaller model", 2
    return f"{type(error).__name__}: {text}; this was not foreseen, --verbose shows where it happened", 1


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _print(str(message), "[yellow]Warning:[/] ")


def _print(text: str, mark: str = "", file: TextIO | None = None) -> None:
    """A line on ``file``, by default standard error."""
    from rich.console import Console  # takes a while, and most calls have nothing to say
    from rich.markup import escape

    Console(file=file, stderr=file is None).print(mark + escape(text), soft_wrap=True, highlight=False)
