"""A new method is one file: registry, command line, contract matrix and docs have it without another edit."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tokensieve as ts

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


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's sources, tests and documents with one file more in methods/."""
    root = tmp_path_factory.mktemp("clone")
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("src", "tests", "scripts", "docs", "benchmarks"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, root / folder, ignore=unwanted)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "src" / "tokensieve" / "methods" / "every_other.py").write_text(EVERY_OTHER, encoding="utf-8")
    return root


def python(root: Path, *arguments: str) -> str:
    """What ``python ARGUMENTS`` prints in ``root`` with its copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_file_is_short() -> None:
    assert len(EVERY_OTHER.splitlines()) <= 40


def test_it_is_not_there_without_the_file() -> None:
    assert "every-other" not in python(ROOT, "-m", "tokensieve", "methods")


def test_the_command_line_lists_it(clone: Path) -> None:
    assert "every-other" in python(clone, "-m", "tokensieve", "methods")


def test_python_has_it_by_name_and_by_class(clone: Path) -> None:
    code = "import tokensieve as ts; print(ts.parse('every-other:sites=[0]') == (ts.EveryOther(sites=(0,)),))"
    assert python(clone, "-c", code).split() == ["True"]


def test_the_contract_matrix_collects_it_and_it_passes(clone: Path) -> None:
    pytest_in_clone = ("-m", "pytest", "tests/contract", "-q", "-p", "no:cacheprovider")
    collected = python(clone, *pytest_in_clone, "--collect-only")
    lines = [line for line in collected.splitlines() if "every-other" in line]
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
        assert any(contract in line for line in lines), contract
    chosen = "plain and every-other and (removing_nothing or remove_gives or budget or batch or shapes or state_dicts)"
    ran = python(clone, *pytest_in_clone, "-k", chosen)
    assert " passed" in ran and "failed" not in ran


def test_the_docs_tables_have_it(clone: Path) -> None:
    before = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "## every-other" not in before
    python(clone, "scripts/generate_docs.py")
    assert "## every-other" in (clone / "docs" / "methods.md").read_text(encoding="utf-8")
    row = next(
        line for line in (clone / "README.md").read_text(encoding="utf-8").splitlines() if "[`every-other`]" in line
    )
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


@pytest.mark.parametrize(
    ("folder", "other"), [("methods", "families"), ("families", "methods"), ("methods", "timm"), ("ops", "timm")]
)
def test_methods_and_families_do_not_know_each_other(folder: str, other: str) -> None:
    forbidden = other if other == "timm" else f"tokensieve.{other}"
    files = sorted((SOURCE / folder).glob("*.py"))
    assert len(files) > 1
    for file in files:
        names = imported(file)
        assert not {name for name in names if name == forbidden or name.startswith(forbidden + ".")}, file.name
        if folder == "methods":
            core = ("tokensieve.engine", "tokensieve.methods._registry")
            assert not {name for name in names if name.startswith(core)}, file.name


def test_functions_and_folders_of_one_name_are_both_within_reach() -> None:
    """``ts.methods`` is a function; the folder that it lists is imported by its path, before or after it is called."""
    from tokensieve.methods import bat
    from tokensieve.methods.bat import BAT

    assert importlib.import_module("tokensieve.methods").bat is bat
    assert ts.list_methods()["bat"] is ts.BAT is BAT is bat.BAT
    assert set(ts.list_families()) == {"hf-dinov2", "hf-dpt", "hf-vit", "timm-eva", "timm-vit"}
    assert ts.parse("bat:keep=0.5") == (BAT(keep=0.5),)
