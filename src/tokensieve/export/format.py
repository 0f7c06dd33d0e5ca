"""What a file format must offer: to write a traced program, and to open the file again."""

from __future__ import annotations

import importlib
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.export import ExportedProgram

from tokensieve.errors import RefusedError, TokensieveError

Run = Callable[[Tensor], Tensor]
RunAll = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Ports:
    """What the input and the outputs of a file are called, in formats that have names for them."""

    input: str = "images"
    outputs: tuple[str, ...] = ("logits",)


CLASSES = Ports()


@dataclass(frozen=True)
class Format(ABC):
    """One format of exported files.

    Class attributes:
        name: what users type.
        title: what messages call it.
        suffix: how its files end.
        companions: endings of the files that lie beside it.
        packages: what must be installed, all of it in the extra ``export``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffix: ClassVar[str]
    companions: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()

    def require(self) -> None:
        """Raise unless everything this format needs is installed.

        Raises:
            TokensieveError: a package is missing; names it and the extra.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                raise TokensieveError(
                    f"the format {self.name} needs the package {error.name}: pip install 'tokensieve[export]'"
                ) from error

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path, ports: Ports = CLASSES) -> None:
        """Write ``program`` to ``path``, and to files beside it where the format has them."""

    @abstractmethod
    def open_all(self, path: Path) -> RunAll:
        """The file as a function from images (B, C, H, W) to all of its outputs, for the B it was traced for."""

    def open(self, path: Path) -> Run:
        """The same with the first output alone."""
        run = self.open_all(path)
        return lambda images: run(images)[0]

    def files(self, path: Path) -> tuple[Path, ...]:
        """``path`` and the files that belong to it, as far as they exist."""
        beside = (path.with_name(path.stem + ending) for ending in self.companions)
        return tuple(file for file in (path, *beside) if file.exists())


def several(run: Callable[[Tensor], Any]) -> RunAll:
    """``run``, which answers with one tensor or a tuple, with a tuple always."""

    def all_of(images: Tensor) -> tuple[Tensor, ...]:
        answer = run(images)
        return (answer,) if isinstance(answer, Tensor) else tuple(answer)

    return all_of


Opened = TypeVar("Opened")


def opened(form: Format, how: Callable[[Path], Opened], path: Path) -> Opened:
    """What ``how``, a way of ``form`` to open files, makes of a file that was just written.

    Raises:
        RefusedError: it cannot be opened.
    """
    try:
        return how(path)
    except Exception as error:  # every runtime has its own
        raise RefusedError(
            f"{form.title} cannot open what was exported: {reason(error)}; nothing was written"
        ) from error


def reason(error: BaseException) -> str:
    """What an exporter or a runtime failed on: one short line, without the chain of its own errors around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return textwrap.shorten(line, 300, placeholder=" …")
