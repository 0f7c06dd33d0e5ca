"""The rows of a measurement and the files they go to: JSON for programs and for resuming, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokensieve._version import VERSION
from tokensieve.errors import TokensieveError
from tokensieve.utils.files import replacing

DENSE = "dense"


@dataclass
class Speed:
    """What one variant reached at one batch size, against the dense model in the same run.

    Attributes:
        batch: images per call.
        images_per_second: at the median of the rounds; ``low`` and ``high`` at its quartiles.
        S: speed-up over the dense model. O: the oracle's. None for the dense model itself.
        S_over_F, S_over_O: what is realised of the MACs saved, and of the oracle's speed-up.
        peak_memory: bytes at the peak of one forward pass.
        noisy: the rounds lie so far apart that the figures say little, or the oracle moved every time.
        discarded: sets of rounds thrown away before these because an oracle moved.
        rounds: timings that the figures are medians of; None in files that did not say.
        tokens_per_second: of all prompts of a call, behind the first token; None of a model that generates none.
    """

    batch: int
    images_per_second: float
    low: float
    high: float
    S: float
    O: float | None  # noqa: E741 - the name this literature uses
    S_over_F: float
    S_over_O: float | None
    peak_memory: int
    noisy: bool
    discarded: int = 0
    rounds: int | None = None
    tokens_per_second: float | None = None

    def plain(self) -> dict[str, Any]:
        """The figures by name, without those that only a model has that generates tokens."""
        generated = self.tokens_per_second is not None
        return {key: value for key, value in asdict(self).items() if generated or key != "tokens_per_second"}


@dataclass
class Row:
    """One variant of the model.

    Attributes:
        variant: "dense", or the spec of the methods.
        gmacs: giga multiply-accumulates per image.
        F: dense MACs over these.
        images, top1, top5, agreement, kl: see ``Fidelity``; None until measured.
        speed: one entry a batch size; empty until measured.
        metrics: the figures of a pixel task by name, see ``tokensieve.pixels``, of retrieval, see
            ``RetrievalMeters``, or of answers to questions, see ``tokensieve.answers``; empty for classifiers.
    """

    variant: str
    gmacs: float
    F: float
    images: int | None = None
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    kl: float | None = None
    speed: list[Speed] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """One level of columns, those of speed named by batch size: ``S_b16``."""
        columns = {key: value for key, value in _plain(self).items() if key not in ("speed", "metrics")} | self.metrics
        for speed in self.speed:
            columns |= {f"{key}_b{speed.batch}": value for key, value in speed.plain().items() if key != "batch"}
        return columns


@dataclass
class Results:
    """Rows, the settings they were measured with, and the machine.

    Attributes:
        settings: everything a figure depends on; resuming demands that it is the same.
        command: how it was started.
        rows: in the order measured, the dense model first.
        file: the JSON file; the CSV file and the plot lie beside it. None keeps the rows in memory only.
        left_out: methods of "all" that were not measured, each with the reason.
        stopped: whether Ctrl-C ended the measurement before it was complete.
        skipped: names of the image files that could not be read.
    """

    settings: dict[str, Any]
    command: str = ""
    rows: list[Row] = field(default_factory=list)
    file: Path | None = None
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    left_out: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    skipped: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """Names of the figures of a pixel task or of retrieval; empty for classifiers."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    def find(self, variant: str) -> Row | None:
        """The row of a variant, or None."""
        return next((row for row in self.rows if row.variant == variant), None)

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of the same variant, and write."""
        for number, known in enumerate(self.rows):
            if known.variant == row.variant:
                self.rows[number] = row
                break
        else:
            self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write JSON and CSV, each beside and then renamed, so that a crash leaves the old ones whole."""
        if self.file is None:
            return
        content = {
            "command": self.command,
            "environment": self.environment,
            "settings": self.settings,
            "rows": [_plain(row) for row in self.rows],
        } | ({"left_out": self.left_out} if self.left_out else {})
        write_json(self.file, content)
        with replacing(self.file.with_suffix(".csv")) as beside:
            beside.write_text(self.csv(), encoding="utf-8")

    def csv(self) -> str:
        """The rows as comma-separated values, preceded by columns that say where they were measured."""
        where = {key: value for key, value in self.environment.items() if key != "platform"}
        where |= {key: self.settings.get(key) for key in ("model", "dtype", "img_size")}
        rows = [row.flat() | where for row in self.rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    @property
    def images(self) -> int:
        """How many images the rows were measured on; 0 before there is one."""
        return max((row.images or 0 for row in self.rows), default=0)

    @property
    def plot_file(self) -> Path | None:
        """Where the plot goes."""
        return None if self.file is None else self.file.with_suffix(".png")


def _plain(row: Row) -> dict[str, Any]:
    """The row as it is written; one of a classifier has no metrics, one of any other task no accuracy."""
    content = asdict(row) | {"speed": [speed.plain() for speed in row.speed]}
    absent = ("top1", "top5", "agreement", "kl") if row.metrics else ("metrics",)
    return {key: value for key, value in content.items() if key not in absent}


def open_results(
    file: str | Path | None,
    settings: dict[str, Any],
    command: str = "",
    *,
    resume: bool = False,
    force: bool = False,
) -> Results:
    """Results that will be written to ``file``, continued or new.

    Args:
        file: the JSON file, or None to keep the rows in memory only.
        settings: everything a figure depends on, JSON-ready.
        command: how it was started.
        resume: go on with an existing file.
        force: overwrite an existing file.

    Raises:
        TokensieveError: the file exists (without ``resume`` or ``force``), was measured with other settings, or its
            folder cannot be written.
    """
    if file is None:
        return Results(settings, command)
    path = Path(file)
    if path.suffix != ".json":
        raise TokensieveError(f"the results file must end in .json, got {str(path)!r}; CSV and plot are put beside it")
    with replacing(path, rename=False):
        pass
    if resume and path.exists():
        rows, left_out = _resumed(path, settings)
        return Results(settings, command, rows, path, left_out=left_out)
    taken = next((str(p) for p in (path, path.with_suffix(".csv"), path.with_suffix(".png")) if p.exists()), None)
    if taken is not None and not force:
        raise TokensieveError(f"{taken!r} exists: go on with --resume, overwrite with --force, or name another file")
    return Results(settings, command, [], path)


def _resumed(path: Path, settings: dict[str, Any]) -> tuple[list[Row], dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measured, saved = content["settings"], content["rows"]
        left_out = dict(content.get("left_out", {}))
        rows = [Row(**(row | {"speed": [Speed(**speed) for speed in row["speed"]]})) for row in saved]
    except (ValueError, KeyError, TypeError) as error:
        raise TokensieveError(f"{str(path)!r} is not a results file that can be resumed: {error}") from error
    wanted = json.loads(json.dumps(settings))
    check_same(path, measured, wanted, sorted(measured.keys() | wanted.keys()))
    return rows, left_out


def check_same(path: Path, before: dict[str, Any], now: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuse to go on with ``path`` where one of ``keys`` is not what its figures were measured with.

    Raises:
        TokensieveError: names the first that changed.
    """
    for key in keys:
        if before.get(key) != now.get(key):
            raise TokensieveError(
                f"{str(path)!r} was measured with {key} = {before.get(key)!r} and cannot be resumed with "
                f"{now.get(key)!r}: use the same settings, or another results file"
            )


def write_json(path: Path, content: dict[str, Any], indent: int = 2) -> None:
    """Write JSON beside ``path`` and rename it, so that a crash leaves the old file whole."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, device, threads and whether our CPU kernels are built: what a figure must be read with."""
    import timm  # here and below: tables of rows are printed and files of theirs read without waiting for these
    import torch

    from tokensieve.ops import cpu as native

    return {
        "tokensieve": VERSION,
        "commit": _commit(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": native.available(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The git commit that the package runs from, marked when there are changes on top; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(here), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # a package inside another project's checkout has no commit
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
