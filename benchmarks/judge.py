"""Judge results files by the goals again and rewrite their reports.

python -m benchmarks judge benchmarks/results/FILE.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.session import report
from benchmarks.store import read_store


def options(parser: argparse.ArgumentParser) -> None:
    """Which files."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")


def run(given: argparse.Namespace) -> None:
    """Rewrite the report of each."""
    for path in given.files:
        report(read_store(path))
