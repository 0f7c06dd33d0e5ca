"""Output files: made in a folder beside and moved into place when they are good, never over others unasked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokensieve.errors import TokensieveError
from tokensieve.export.format import Format


def check_output(path: Path, form: Format, force: bool) -> None:
    """Raise before any work is done when ``path`` cannot be written to.

    Raises:
        TokensieveError: another ending than the format's, no such folder, or files that exist.
    """
    if path.suffix != form.suffix:
        raise TokensieveError(f"a file of the format {form.name} must end in {form.suffix}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise TokensieveError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    taken = next(iter(form.files(path)), None)
    if taken is not None and taken.is_dir():
        raise TokensieveError(f"cannot write {taken}: it is a folder; give the name of a file")
    if taken is not None and not force:
        raise TokensieveError(f"{taken} exists: give another name, or force=True (--force) to replace it")


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """A path of the same name in a fresh folder beside; what lies there when the block ends well takes its place.

    Raises:
        TokensieveError: no permission, or the disk is full.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-"))
        yield folder / path.name
        # The file itself comes last: a process that waits for it then finds the others.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
    except OSError as error:
        raise TokensieveError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
