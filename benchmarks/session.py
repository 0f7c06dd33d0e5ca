"""Measuring a list of cells into results files: every finished cell is saved, and the report is written at the end."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.allocator import keep_freed_memory
from benchmarks.cells import Cell
from benchmarks.goals import judge
from benchmarks.report import print_goals, write_report
from benchmarks.store import Store, open_store
from tokensieve.cli.output import note, progress_bars
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import environment
from tokensieve.models.runtime import Runtime

Measure = Callable[[Cell, str, str | None, Progress], dict[str, Any]]
RESULTS = Path(__file__).parent / "results"


def common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark that measures cells."""
    parser.add_argument("--rounds", type=int, help="timings of each variant; default as the cells say")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", metavar="FOLDER", help="photographs, one sub-folder a class; default random numbers")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="default benchmarks/results")
    parser.add_argument("--resume", action="store_true", help="go on with existing files; what they have is kept")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument(
        "--give-memory-back", action="store_true", help="leave freed memory to the system, as Python does"
    )


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where and on what cells are measured.

    Attributes:
        device: a torch device.
        data: folder of photographs, or None for random numbers.
        output: folder of the results files, one for each dtype.
        resume: go on with existing files; what they have is kept.
        force: overwrite existing files.
        keep_memory: keep freed memory in the process, see ``allocator``; else every page is faulted in again.
        measures: how each kind of cell is measured: (cell, device, data, progress) to its record.
    """

    device: str
    data: str | None
    output: Path
    resume: bool
    force: bool
    keep_memory: bool
    measures: Mapping[str, Measure]

    @classmethod
    def of(cls, given: argparse.Namespace, measures: Mapping[str, Measure]) -> Session:
        """What the common options describe."""
        same = {name: getattr(given, name) for name in ("device", "data", "output", "resume", "force")}
        return cls(**same, keep_memory=not given.give_memory_back, measures=measures)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return torch.device(self.device).type == "cpu"

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse a device, an engine or a folder that is not there, before anything is measured."""
        Runtime(device=self.device).check()
        for cell in cells:
            cell.setting.runtime(self.device).check()
        if self.data is not None and not Path(self.data).is_dir():
            raise TokensieveError(f"the image folder {self.data!r} does not exist: give --data FOLDER, or leave it out")

    def run(self, cells: Sequence[Cell]) -> int:
        """Measure, save and report. Returns the exit code: 1 when a cell failed, 130 after Ctrl-C."""
        self.check(cells)
        kept = self.on_cpu and self.keep_memory and keep_freed_memory()
        here = environment(self.device) | {"keeps_freed_memory": kept}
        options = {"on_cpu": self.on_cpu, "resume": self.resume, "force": self.force}
        dtypes = dict.fromkeys(cell.setting.dtype for cell in cells)
        stores = {dtype: open_store(self.output, here, dtype, **options) for dtype in dtypes}
        stopped = False
        with progress_bars() as bars:
            try:
                for number, cell in enumerate(cells, start=1):
                    outcome = self._outcome(stores[cell.setting.dtype], cell, bars)
                    note(f"[{number}/{len(cells)}] {cell.id}: {outcome}")
            except KeyboardInterrupt:
                stopped = True
                note("stopped; every finished cell is saved, go on with --resume")
        for store in stores.values():
            if store.cells:
                report(store)
                print(f"written: {store.path}, {store.path.stem}.md, {store.path.stem}.png")
        return 130 if stopped else int(any("failed" in stores[c.setting.dtype].cells[c.id] for c in cells))

    def _outcome(self, store: Store, cell: Cell, progress: Progress) -> str:
        if store.done(cell):
            return "measured already"
        start, cell = time.perf_counter(), cell.also(store.methods(cell))
        record = self.measure(cell, progress)
        took = time.perf_counter() - start
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        told = {"seconds": took, "commit": store.environment["commit"], "command": command(), "load": load}
        store.put(cell, record | told)
        gc.collect()
        if not self.on_cpu:
            torch.cuda.empty_cache()
        torch.compiler.reset()
        return f"failed: {record['failed']}" if "failed" in record else f"{took:.0f} s"

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """The record of one cell. One that does not fit into memory, or cannot be compiled or captured, says so."""
        try:
            with warnings.catch_warnings():
                # The report says that all weights are random, those of selectors among them. Other warnings are shown.
                warnings.filterwarnings("ignore", ".*selector has not been trained", TokensieveWarning)
                return self.measures[cell.kind](cell, self.device, self.data, progress)
        except torch.OutOfMemoryError:
            return {"failed": "it does not fit into the device's memory"}
        except (TokensieveError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            return {"failed": reason if isinstance(error, TokensieveError) else f"{type(error).__name__}: {reason}"}


def report(store: Store) -> None:
    """Judge a store, write its report and print the goals."""
    goals = judge(store.cells, on_cpu=store.on_cpu)
    write_report(store, goals)
    print_goals(goals, store.path.stem)


def command() -> str:
    """How this was called. Results are shared: of a path that only this machine has, its name is enough."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])
