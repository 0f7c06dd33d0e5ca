"""The log of a run: one JSON object a line, the same as CSV, and accelerate's trackers (TensorBoard and others)."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from tokensieve.errors import TokensieveError
from tokensieve.utils.files import replacing

Record = dict[str, Any]


class Log:
    """Figures by step; only the main process has one.

    Args:
        folder: gets ``log.jsonl``, appended line by line, and ``log.csv``.
        after: figures of later steps, left by a run that was killed, are dropped: they come again.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._lines = folder / "log.jsonl"
        self._table = folder / "log.csv"
        self.records = [record for record in _read(self._lines) if record["step"] <= after]
        with replacing(self._lines) as beside:
            beside.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")

    def add(self, record: Record) -> None:
        """Append figures; ``step`` is one of them."""
        self.records.append(record)
        try:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TokensieveError(f"cannot write {str(self._lines)!r}: {error.strerror or error}") from error

    def write_table(self) -> None:
        """Write all figures as comma-separated values."""
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        with replacing(self._table) as beside:
            beside.write_text(text.getvalue(), encoding="utf-8")


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break  # the line that was being written when the run was killed
    return records
