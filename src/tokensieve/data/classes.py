"""A file of class names: what is shown to a text tower, and which folder of images it is about."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest


@dataclass(frozen=True)
class ClassNames:
    """K classes in the order of a model's answers.

    Attributes:
        file: where they were read.
        names: what each is called.
        folders: what the folder of its images is called.
    """

    file: str
    names: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A word that is another one for other names, folders or orders."""
        return hashlib.sha256(repr((self.names, self.folders)).encode()).hexdigest()[:16]

    def notes(self) -> list[str]:
        """What may not be meant: names that several classes have, which no text tells apart."""
        often = [name for name, count in collections.Counter(self.names).items() if count > 1]
        return [f"{len(often)} names are those of several classes, such as {often[0]!r}"] if often else []

    def number(self, reader: Any, where: str, notes: list[str]) -> None:
        """Number the classes of a timm reader of folders as here.

        Args:
            reader: the reader, changed in place.
            where: what it reads.
            notes: gets a line where classes have no folder.

        Raises:
            TokensieveError: a folder is no class of the file.
        """
        found: Mapping[str, int] = reader.class_to_idx
        numbers = {folder: number for number, folder in enumerate(self.folders)}
        unknown = sorted(set(found) - set(numbers))
        if unknown:
            raise TokensieveError(
                f"{len(unknown)} of {len(found)} folders in {where!r} are not in the class file {self.file!r}, such as "
                f"{unknown[0]!r}{nearest(unknown[0], self.folders)}: give each a line, FOLDER<TAB>NAME where the name "
                "is another one"
            )
        absent = [folder for folder in self.folders if folder not in found]
        if absent:
            notes.append(f"{len(absent)} classes of {self.file} have no folder of images, such as {absent[0]!r}")
        names = {label: name for name, label in found.items()}
        reader.samples = [(file, numbers[names[label]]) for file, label in reader.samples]
        reader.class_to_idx = numbers

    def check(self, numbered: Mapping[str, int] | None, where: str) -> None:
        """Hold a data set that numbers its classes itself to the order of the file.

        Args:
            numbered: its classes by name; None where it does not tell them.
            where: the data set.

        Raises:
            TokensieveError: another number of classes, or one that both have at another place.
        """
        if not numbered:
            return
        if len(numbered) != len(self.names):
            raise TokensieveError(
                f"the data set {where!r} has {len(numbered)} classes and the class file {self.file!r} "
                f"{len(self.names)} lines: give one for each class, in the order of the data set"
            )
        for number, folder in enumerate(self.folders):
            if numbered.get(folder, number) != number:
                raise TokensieveError(
                    f"line {number + 1} of the class file {self.file!r} is {folder!r}, which is class "
                    f"{numbered[folder]} of the data set {where!r}, counted from 0: give the lines in its order"
                )


def read_classes(file: str | Path) -> ClassNames:
    """The classes of a text file in UTF-8, one a line: its name, or its folder, a tab and its name.

    Raises:
        TokensieveError: no such file, another encoding, a line that is empty or has several tabs, a folder twice, or
            fewer than two classes.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").rstrip("\r\n ").splitlines()
    except OSError as error:
        raise TokensieveError(f"the class file {str(file)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokensieveError(f"the class file {str(file)!r} is no text in UTF-8: {error.reason}") from error
    classes: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) > 2 or not all(parts):
            raise TokensieveError(
                f"line {number} of the class file {str(file)!r} is {line!r}: expected NAME, or FOLDER<TAB>NAME"
            )
        classes.append((parts[0], parts[-1]))
    if len(classes) < 2:
        raise TokensieveError(f"the class file {str(file)!r} has {len(classes)} lines: expected two classes or more")
    folders = tuple(folder for folder, _ in classes)
    twice = next((folder for folder, count in collections.Counter(folders).items() if count > 1), None)
    if twice is not None:
        raise TokensieveError(f"the class file {str(file)!r} has {twice!r} twice: give each class one line")
    return ClassNames(str(file), tuple(name for _, name in classes), folders)
