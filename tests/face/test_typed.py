"""The package in a user's project: what the README shows passes mypy and pyright, and mistakes do not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = """
reveal_type(ts.BAT(keep=0.7))
reveal_type(ts.parse("tome:r=4+topk:keep=0.8"))
reveal_type(ts.list_methods())
reveal_type(ts.list_families())
reveal_type(ts.spell(ts.applied(model)))
reveal_type(ts.make_plan(model, "bat", target_speedup=1.5))
reveal_type(ts.export_model(model, "model.onnx"))
reveal_type(ts.trace(model, images))
reveal_type(ts.measure.count(model, images))
reveal_type(ts.__version__)
ts.remove(model)
"""
REVEALED = {
    "BAT",
    "tuple[Method, ...]",
    "dict[str, type[Method]]",
    "dict[str, Family]",
    "str",
    "SpeedPlan",
    "Exported",
    "Trace",
    "MacReport",
}
METHOD = '''"""A method of another package, written against the face of ``tokensieve.methods``."""

from dataclasses import dataclass

import torch

from tokensieve.methods import Assignment, Layout, Method, View, checked_sites, keep_only, require


@dataclass(frozen=True, kw_only=True)
class EveryOther(Method):
    """Drop every second token."""

    sites: tuple[int, ...] | None = None

    name = "every-other"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sites != (), self, "sites", "at least one block")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return checked_sites(self.sites, (3, 6, 9), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return (patches + 1) // 2

    def assign(self, view: View) -> Assignment:
        keep = torch.arange(0, view.count, 2, device=view.x.device).expand(view.x.shape[0], -1)
        return keep_only(keep, view.count)


reveal_type(EveryOther(sites=(1, 2)).sites)
'''
WRONG = """import tokensieve as ts
import tokensieve.methods.bat as bat

bat.BAT(kep=0.7)
ts.BAT(keep="much")
ts.Bat(keep=0.7)
ts.export(1)
"""
WRONG_LINES = {4, 5, 6, 7}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a program: the README's first lines and what else it shows, a method, and four mistakes."""
    (shown,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[:1]
    assert "ts.apply(model, ts." in shown
    images = "import torch\n\nimages = torch.randn(1, 3, 224, 224)\n"
    (tmp_path / "program.py").write_text(images + shown + OWN, encoding="utf-8")
    (tmp_path / "method.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    return tmp_path


def run(arguments: Sequence[str | Path], folder: Path) -> str:
    """What a type checker prints."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def errors(output: str) -> dict[str, set[int]]:
    """File → lines with an error, in what mypy or pyright print."""
    found: dict[str, set[int]] = {}
    for name, line in re.findall(r"(\w+)\.py:(\d+)(?::\d+)?(?: -|:) error", output):
        found.setdefault(name, set()).add(int(line))
    return found


def plain(kind: str) -> str:
    """A type without the modules of its classes."""
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", kind)


def test_mypy(project: Path) -> None:
    files = [project / f"{name}.py" for name in ("program", "method", "wrong")]
    output = run([sys.executable, "-m", "mypy", *files], ROOT)  # strict, with what `make types` left in its cache
    assert errors(output) == {"wrong": WRONG_LINES}, output
    revealed = {plain(kind) for kind in re.findall(r'program\.py.*Revealed type is "(.*)"', output)}
    assert revealed == REVEALED, output


def test_pyright(project: Path) -> None:
    pyright = [sys.executable, "-m", "pyright"]
    if subprocess.run([*pyright, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("pyright cannot run: at its first call it fetches itself from npm, which needs a network")
    settings = f'{{"extraPaths": ["{(ROOT / "src").as_posix()}"], "typeCheckingMode": "strict"}}'
    (project / "pyrightconfig.json").write_text(settings, encoding="utf-8")
    output = run([*pyright, "--pythonpath", sys.executable], project)
    assert errors(output) == {"wrong": WRONG_LINES}, output
    revealed = {plain(kind) for kind in re.findall(r'program\.py.*Type of ".*" is "(.*)"', output)}
    assert revealed == REVEALED, output
