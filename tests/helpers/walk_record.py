"""What both walks share: every name is judged whatever the others do, and the verdicts are counted and written down."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Found = dict[str, str]  # a verdict: "status", "reason", and what a walk adds to them


def failed(error: Exception) -> Found:
    """The verdict where a model cannot be judged, or breaks where it should be refused."""
    return {"status": "FAILED", "reason": f"{type(error).__name__}: {error}"[:300]}


def judged(cases: Iterable[tuple[str, Callable[[], Found]]]) -> dict[str, Found]:
    """The verdict on every name; an exception is the verdict "FAILED" on one name, and never ends the walk."""
    models: dict[str, Found] = {}
    for number, (name, judge) in enumerate(cases, start=1):
        try:
            models[name] = judge()
        except Exception as error:
            models[name] = failed(error)
        found = models[name]
        if sys.stderr.isatty() or found["status"] == "FAILED":
            print(f"{number} {name}: {found['status']} {found['reason']}", file=sys.stderr, flush=True)
    return models


def versions(**libraries: str) -> dict[str, str]:
    """The version of each library that a walk ran with, torch's without its build."""
    return {**libraries, "torch": torch.__version__.partition("+")[0]}


def counted(walked: dict[str, Any]) -> dict[str, int]:
    """How many names have each status."""
    return dict(sorted(collections.Counter(found["status"] for found in walked["models"].values()).items()))


def record(about: str | None, walk: Callable[[], dict[str, Any]], *said: Callable[[dict[str, Any]], str]) -> int:
    """Run a walk as a command: write its JSON file whole or not at all, print its counts and what is ``said`` of it.

    Returns:
        The exit status: 1 where a name has failed.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    output: Path = parser.parse_args().output
    walked = walk()
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.writing")
    beside.write_text(json.dumps(walked, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, output)
    counts = counted(walked)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    for say in said:
        print(say(walked))
    return int("FAILED" in counts)
