"""Rows to a file: a PNG sheet or an HTML page, by the ending of its name; nothing is overwritten unasked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokensieve.errors import TokensieveError
from tokensieve.show.maps import Row
from tokensieve.show.page import page
from tokensieve.show.sheet import sheet
from tokensieve.utils.files import replacing

ENDINGS = (".png", ".html", ".htm")


def check_output(output: Path, force: bool = False) -> None:
    """Raise before any work is done when ``output`` cannot be written to.

    Raises:
        TokensieveError: another ending than .png or .html, no such folder or a closed one, or a file that exists.
    """
    if output.suffix.lower() not in ENDINGS:
        raise TokensieveError(f"cannot write a picture to {str(output)!r}: its name must end in .png or .html")
    with replacing(output, rename=False):
        pass
    if output.exists() and not force:
        raise TokensieveError(f"{str(output)!r} exists: give another --output, or --force to overwrite it")


def write_rows(rows: Sequence[Row], output: Path, title: str, force: bool = False) -> None:
    """Draw ``rows`` and write them to ``output``, whole or not at all.

    Args:
        rows: at least one.
        output: a path that ends in .png or .html.
        title: the heading of an HTML page.
        force: overwrite a file that exists.

    Raises:
        TokensieveError: as ``check_output``, or the disk is full or closed to us.
    """
    check_output(output, force)
    with replacing(output) as beside:
        if output.suffix.lower() == ".png":
            sheet(rows).save(beside, "png")
        else:
            beside.write_text(page(rows, title), encoding="utf-8")
