"""Pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by scripts/generate_docs.py; edit the sources it names, then run `make docs`. -->\n\n"
WIDTH = 120  # of a line of prose
WORDS = re.compile(r"(?:``[^`]*``|`[^`]*`|[^\s`])+")  # a code span is not broken
MARKER = re.compile(r"([-+*#>|=]+|\d+[.)])$")  # what would mean something at the beginning of a line


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [list(head), ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def words(text: str) -> list[str]:
    """The pieces between which a line may break: what Markdown would read as a marker stays with the word before."""
    pieces: list[str] = []
    for word in WORDS.findall(text):
        if pieces and MARKER.match(word):
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    return pieces


def wrap(text: str) -> str:
    """Prose with its lines filled up to 120 characters; paragraphs stay."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [""]
        for word in words(paragraph):
            if not lines[-1] or len(lines[-1]) + 1 + len(word) <= WIDTH:
                lines[-1] = f"{lines[-1]} {word}".strip()
            else:
                lines.append(word)
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def listed(names: Iterable[str]) -> str:
    """Names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def fill(text: str, name: str, body: str) -> str:
    """``text`` with the part between the markers ``begin NAME`` and ``end NAME`` replaced by ``body``."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"expected the markers {begin!r} and {end!r} once each")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{body.strip()}\n{end}{after}" if body else f"{before}{begin}\n{end}{after}"


def number(value: float | None, digits: int) -> str:
    """A measured number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def write_or_check(wanted: dict[Path, str], doc: str) -> int:
    """Write the generated files that are stale, or with ``--check`` only name them: the exit status."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check: bool = parser.parse_args().check
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(check and bool(stale))
