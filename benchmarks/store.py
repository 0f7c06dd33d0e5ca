"""The results file of one device, torch and dtype: every cell is saved as soon as it is measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from tokensieve.errors import TokensieveError
from tokensieve.measure.results import check_same, write_json
from tokensieve.utils.files import replacing

FORMAT = 1  # of the file; counted up when records change
# What of the environment makes figures incomparable when it changes.
MACHINE = ("device", "threads", "cpu_kernels", "keeps_freed_memory", "torch", "timm")


class Store:
    """Cells by id, and the machine they were measured on.

    Attributes:
        path: the JSON file; table and plot lie beside it.
        environment: see ``tokensieve.measure.results.environment``.
        dtype: of all cells in it.
        on_cpu: whether the device is the CPU.
        cells: id to record, in the order measured first.
        profiles: where the time goes, see ``profile.py``.
    """

    def __init__(self, path: Path, environment: dict[str, Any], dtype: str, on_cpu: bool) -> None:
        self.path, self.environment, self.dtype, self.on_cpu = path, environment, dtype, on_cpu
        self.cells: dict[str, dict[str, Any]] = {}
        self.profiles: list[dict[str, Any]] = []

    def methods(self, cell: Cell) -> tuple[str, ...]:
        """The specs that ``cell`` was measured with; none where it was not, or failed."""
        record = self.cells.get(cell.id)
        return () if record is None or "failed" in record else tuple(record["methods"])

    def done(self, cell: Cell) -> bool:
        """Whether every method of ``cell`` has its figures."""
        return bool(self.methods(cell)) and set(cell.methods) <= set(self.methods(cell))

    def put(self, cell: Cell, record: dict[str, Any]) -> None:
        """Save what was measured in ``cell``; what the cell had is replaced."""
        self.cells[cell.id] = cell.described() | record
        self.write()

    def write(self) -> None:
        """Write the file."""
        content = {"format": FORMAT} | {name: getattr(self, name) for name in ("environment", "dtype", "on_cpu")}
        write_json(self.path, content | {"cells": self.cells, "profiles": self.profiles}, indent=1)


def file_name(environment: dict[str, Any], dtype: str, on_cpu: bool) -> str:
    """``<device>-<torch>-<dtype>.json``; a CPU's name says how many threads ran."""
    device = environment["device"] + (f" {environment['threads']} threads" if on_cpu else "")
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{slug}-torch{environment['torch'].partition('+')[0]}-{dtype}.json"


def read_store(path: Path) -> Store:
    """The store in ``path``.

    Raises:
        TokensieveError: no such file, or not one that this benchmark wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        store = Store(path, content["environment"], content["dtype"], content["on_cpu"])
        store.cells, store.profiles = dict(content["cells"]), list(content["profiles"])
    except OSError as error:
        raise TokensieveError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TokensieveError(f"{str(path)!r} is not a results file of these benchmarks: {error}") from error
    return store


def open_store(
    folder: Path, environment: dict[str, Any], dtype: str, *, on_cpu: bool, resume: bool = False, force: bool = False
) -> Store:
    """The store for ``dtype`` in ``folder``, continued with ``resume`` or new; the folder is made where there is none.

    Raises:
        TokensieveError: the file exists (without ``resume`` or ``force``), is of another machine or of other versions,
            or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokensieveError(f"cannot make the folder {str(folder)!r}: {error.strerror or error}") from error
    path = folder / file_name(environment, dtype, on_cpu)
    with replacing(path, rename=False):
        pass
    if not path.exists() or (force and not resume):
        return Store(path, environment, dtype, on_cpu)
    if not resume:
        raise TokensieveError(f"{str(path)!r} exists: go on with --resume, overwrite with --force, or use --output")
    store = read_store(path)
    check_same(path, store.environment, environment, MACHINE)
    store.environment = environment
    return store
