"""A new method is one file: registry, command line, contract matrix and docs have it without another edit."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokensieve as ts
from tests.helpers.calling import call

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tokensieve"

EVERY_OTHER = '''"""A made-up method, used by the tests: every second token goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods._method import Method
from tokensieve.tokens.decision import Assignment, keep_only
from tokensieve.methods._view import Layout, View


@dataclass(frozen=True, kw_only=True)
class EveryOther(Method):
    """Drop every second token.

    Options:
        sites: 0-based blocks at which it acts.
    """

    sites: tuple[int, ...] = (1,)

    name = "every-other"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return self.sites

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return (patches + 1) // 2

    def assign(self, view: View) -> Assignment:
        even = torch.arange(0, view.count, 2, device=view.x.device)
        return keep_only(even.expand(view.x.shape[0], -1), view.count)
'''


# Run in the clone: the command line, Python, the docs and the contract suite are asked in one process.
ASK = '''
import json, runpy, sys
import pytest
from typer.testing import CliRunner
import tokensieve as ts
from tokensieve.cli.app import app

class Collected:
    """Remembers every test that names the method, and keeps a few of them to run."""

    def __init__(self):
        self.names, self.passed, self.failed = [], 0, []

    def pytest_collection_modifyitems(self, items):
        self.names = [item.nodeid for item in items if "every-other" in item.name]
        words = ("removing_nothing", "remove_gives", "budget", "batch", "shapes", "state_dicts")
        ours = [item for item in items if "every-other" in item.name and "plain" in item.name]
        items[:] = [item for item in ours if any(word in item.name for word in words)]

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self.failed.append(report.nodeid)

def listed():
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0, result.output
    return result.output

found = {"listed": listed(), "same": ts.parse("every-other:sites=[0]") == (ts.EveryOther(sites=(0,)),)}
sys.argv = ["scripts/generate_docs.py"]
try:
    runpy.run_path("scripts/generate_docs.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
collected = Collected()
files = [f"tests/contract/test_{name}.py" for name in ("matrix", "compile", "state")]
pytest.main([*files, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", ""], plugins=[collected])
found |= {"collected": collected.names, "passed": collected.passed, "failed": collected.failed}
with open("found.json", "w", encoding="utf-8") as file:
    json.dump(found, file)
'''


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's sources, tests and documents with one file more in methods/."""
    root = tmp_path_factory.mktemp("clone")
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("src", "tests", "scripts", "docs", "benchmarks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=unwanted)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "src" / "tokensieve" / "methods" / "every_other.py").write_text(EVERY_OTHER, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def found(clone: Path) -> dict[str, Any]:
    """What ASK finds in the clone, with its copy of the package."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone / 'scripts'}",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers: dict[str, Any] = json.loads((clone / "found.json").read_text(encoding="utf-8"))
    return answers


def test_the_file_is_short() -> None:
    assert len(EVERY_OTHER.splitlines()) <= 40


def test_it_is_not_there_without_the_file() -> None:
    assert "every-other" not in ts.list_methods() and not hasattr(ts, "EveryOther")
    assert "tome" in call("methods").output and "every-other" not in call("methods").output


def test_the_command_line_lists_it(found: dict[str, Any]) -> None:
    assert "every-other" in found["listed"]


def test_python_has_it_by_name_and_by_class(found: dict[str, Any]) -> None:
    assert found["same"] is True


def test_the_contract_matrix_collects_it_and_it_passes(found: dict[str, Any]) -> None:
    for contract in (
        "removing_nothing",
        "remove_gives",
        "budget",
        "batch",
        "export",
        "compiles",
        "deepcopy",
        "threads",
    ):
        assert any(contract in name for name in found["collected"]), contract
    assert found["passed"] >= 6 and not found["failed"], found["failed"]


def test_the_docs_tables_have_it(clone: Path, found: dict[str, Any]) -> None:
    before = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "## every-other" not in before
    page = (clone / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "## every-other" in page
    assert "`every-other`" in (clone / "README.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if "[`every-other`]" in line)
    assert "Drop every second token" in row


def imported(file: Path) -> set[str]:
    """The modules that a source file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


LAYOUT = "tokensieve.families._layout"  # types that both speak of; scripts/check_rooms.py says which files may


@pytest.mark.parametrize(
    ("folder", "other"), [("methods", "families"), ("families", "methods"), ("methods", "timm"), ("ops", "timm")]
)
def test_methods_and_families_do_not_know_each_other(folder: str, other: str) -> None:
    forbidden = other if other == "timm" else f"tokensieve.{other}"
    files = sorted((SOURCE / folder).glob("*.py"))
    assert len(files) > 1
    for file in files:
        names = {name for name in imported(file) if not name.startswith(LAYOUT)}
        assert not {name for name in names if name == forbidden or name.startswith(forbidden + ".")}, file.name
        if folder == "methods" and not file.name.startswith("_"):
            core = ("tokensieve.engine", "tokensieve.methods._registry")
            assert not {name for name in names if name.startswith(core)}, file.name


def test_methods_and_families_are_within_reach_by_name_by_class_and_by_path() -> None:
    from tokensieve.methods import bat
    from tokensieve.methods.bat import BAT

    assert importlib.import_module("tokensieve.methods").bat is bat
    assert ts.list_methods()["bat"] is ts.BAT is BAT is bat.BAT
    assert {"hf-clip", "hf-dinov2", "open-clip", "timm-eva", "timm-vit", "torchvision-vit"} <= set(ts.list_families())
    assert ts.parse("bat:keep=0.5") == (BAT(keep=0.5),)
