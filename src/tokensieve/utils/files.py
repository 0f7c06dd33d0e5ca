"""Writing files so that nothing is lost: beside and then renamed, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokensieve.errors import TokensieveError


@contextmanager
def replacing(path: Path, rename: bool = True) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when the block ends well.

    Args:
        path: the file to write.
        rename: False only tries whether it could be written.

    Raises:
        TokensieveError: no such folder, no permission, disk full.
    """
    if not path.parent.is_dir():
        wrong = "is not a folder" if path.parent.exists() else "does not exist; create that folder first"
        raise TokensieveError(f"cannot write {str(path)!r}: {str(path.parent)!r} {wrong}")
    if path.is_dir():
        raise TokensieveError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise TokensieveError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        if rename:
            beside.chmod(0o666 & ~_umask())
            beside.replace(path)
    except OSError as error:
        raise TokensieveError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
