"""scripts/check_rooms.py: the package passes, and a made-up one that breaks a rule does not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_rooms.py"
FACE = "from made.utils.lazy import Face as _Face\n\n_face = _Face(__name__, {'made.methods._view': ['View']})\n"
SOUND = {
    "__init__.py": FACE,
    "errors.py": "",
    "_version.py": "",
    "utils/__init__.py": "",
    "utils/lazy.py": "class Face: ...\n",
    "ops/__init__.py": "",
    "ops/rows.py": "from made.errors import Error\n",
    "families/__init__.py": FACE.replace("methods._view", "families._layout"),
    "families/_layout.py": "",
    "families/_family.py": "from . import _layout\n",
    "families/vit.py": "from made.families._family import Family\n",
    "methods/__init__.py": FACE,
    "methods/_view.py": "from made.families._layout import Layout\nfrom ..ops import rows\n",
    "methods/drop.py": (
        "from typing import TYPE_CHECKING\n"
        "from made.methods._view import Layout\n"
        "if TYPE_CHECKING:\n"
        "    from made.engine.apply import apply\n"
    ),
    "engine/__init__.py": "",
    "engine/apply.py": "from made.methods import _view\nfrom made.methods import drop\n",
    "cli/__init__.py": "",
    "cli/app.py": "def main():\n    from made.engine.apply import apply\n",
    "__main__.py": "from made.cli.app import main\n",
}


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_rooms", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    del sys.modules[spec.name]
    return module


@pytest.fixture
def breaches(check: ModuleType, tmp_path: Path) -> Callable[[Mapping[str, str]], list[str]]:
    """What the check finds in the sound package with some files changed or added."""

    def run(changed: Mapping[str, str]) -> list[str]:
        root = tmp_path / "made"
        for name, source in {**SOUND, **changed}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(source, encoding="utf-8")
        found: list[str] = check.breaches(root)
        return [line.removeprefix(f"{root}/") for line in found]

    return run


def test_the_package_keeps_its_order() -> None:
    done = subprocess.run([sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sound_package_passes(breaches: Callable[[Mapping[str, str]], list[str]]) -> None:
    assert breaches({}) == []


@pytest.mark.parametrize(
    ("changed", "where", "said"),
    [
        (
            {"ops/rows.py": "from made.engine.apply import x\n"},
            "ops/rows.py:1",
            "ops imports engine.apply, which",
        ),
        ({"ops/rows.py": "def f():\n    import made.cli.app\n"}, "ops/rows.py:2", "ops imports cli.app, which"),
        (
            {"ops/rows.py": "try:\n    from ..engine import apply\nfinally: ...\n"},
            "ops/rows.py:2",
            "stands above it",
        ),
        (
            {"ops/rows.py": "x = importlib.import_module('made.cli.app')\n"},
            "ops/rows.py:1",
            "ops imports cli.app, which",
        ),
        ({"errors.py": "import made.utils.lazy\n"}, "errors.py:1", "imports utils.lazy, which stands above it"),
        (
            {"ops/__init__.py": FACE},
            "ops/__init__.py:3",
            "ops imports methods._view, which stands above it",
        ),
        ({"engine/apply.py": "import made\n"}, "engine/apply.py:1", "through the face of the package"),
        (
            {"engine/apply.py": "from made import View\n"},
            "engine/apply.py:1",
            "through the face of the package",
        ),
        ({"engine/apply.py": "from made.methods import View\n"}, "engine/apply.py:1", "through the face of methods"),
        ({"stray.py": ""}, "stray.py", "a module in the root"),
        ({"attic/__init__.py": ""}, "attic/__init__.py", "the room attic has no place in the order"),
        (
            {"methods/drop.py": "from made.families._layout import L\n"},
            "methods/drop.py:1",
            "a method never sees",
        ),
        ({"methods/_view.py": "import made.families.vit\n"}, "methods/_view.py:1", "a method never sees"),
        ({"families/vit.py": "from made.methods.drop import D\n"}, "families/vit.py:1", "nor a family a method"),
        (
            {"methods/__init__.py": FACE.replace("_view", "_gone")},
            "methods/__init__.py:3",
            "no module",
        ),
    ],
)
def test_a_breach_is_named_with_its_place(
    breaches: Callable[[Mapping[str, str]], list[str]], changed: dict[str, str], where: str, said: str
) -> None:
    found = breaches(changed)
    assert any(line.startswith(f"{where}: ") and said in line for line in found), found


def test_a_circle_is_named_with_all_its_modules(breaches: Callable[[Mapping[str, str]], list[str]]) -> None:
    found = breaches(
        {
            "engine/one.py": "from made.engine import two\n",
            "engine/two.py": "def f():\n    from made.engine.three import x\n",
            "engine/three.py": "import made.engine.one\n",
        }
    )
    assert len(found) == 1 and "a circle of imports: engine.one, engine.three, engine.two" in found[0]


def test_imports_for_type_checkers_alone_close_no_circle(breaches: Callable[[Mapping[str, str]], list[str]]) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.engine import one\n"
    assert breaches({"engine/one.py": "from made.engine import two\n", "engine/two.py": guarded}) == []
    assert breaches({"engine/two.py": guarded + "else:\n    from made.engine import one\n"}) != []
