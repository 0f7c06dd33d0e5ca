"""The faces: lazy, whole, and in the way of no module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import pkgutil
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokensieve as ts
from tests.face.test_typed import METHOD
from tokensieve.methods._registry import list_methods
from tokensieve.utils.lazy import Face

ROOT = Path(__file__).parents[2]


def packages() -> Iterator[str]:
    """Every package of tokensieve, itself first."""
    yield "tokensieve"
    yield from (found.name for found in pkgutil.walk_packages(ts.__path__, "tokensieve.") if found.ispkg)


PACKAGES = list(packages())
FACES = [name for name in PACKAGES if hasattr(importlib.import_module(name), "_face")]


def python(code: str, *paths: Path) -> str:
    """What a fresh interpreter prints, with ``paths`` before the package's own."""
    path = os.pathsep.join(map(str, [*paths, ROOT / "src"]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = """
import sys
before = set(sys.modules)

def loaded():
    return {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)

import tokensieve as ts
ts.train, ts.measure, ts.methods, ts.__version__, ts.TokensieveError
print(*sorted(loaded()))
ts.BAT(keep=0.7), ts.parse("tome:r=4"), ts.__all__, dir(ts)
print("torch" in loaded(), *sorted(loaded() & {"timm", "torchvision", "torchmetrics", "matplotlib", "huggingface_hub"}))
"""


def test_importing_the_package_imports_nothing_else_and_methods_need_torch_alone() -> None:
    assert python(LOADED).splitlines() == ["tokensieve", "True"]


def test_there_are_faces() -> None:
    rooms = {"train", "pixels", "measure", "export", "models", "plan", "tokens", "methods", "families", "data"}
    rooms |= {"answers", "language"}
    assert {"tokensieve", *(f"tokensieve.{room}" for room in rooms)} == set(FACES)


@pytest.mark.parametrize("package", FACES)
def test_every_name_is_where_the_table_says(package: str) -> None:
    module = importlib.import_module(package)
    face: Face = module._face
    assert module.__all__ == sorted(module.__all__) and set(face.where) <= set(module.__all__)
    for name, (place, own) in face.where.items():
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(place), own)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == place, f"{package} takes {name} from {place}, which does not define it"
            assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_hides_a_module(package: str) -> None:
    """Of a public name and a submodule of the same name, only one can be the package's attribute."""
    module = importlib.import_module(package)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    shown = set(dir(module)) | set(getattr(module, "__all__", ()))
    for name in sorted(modules & shown):
        value = getattr(module, name)
        assert inspect.ismodule(value) and value.__name__ == f"{package}.{name}", f"{package}.{name} is hidden"


def test_modules_are_imported_by_their_paths() -> None:
    import tokensieve.methods.bat as bat
    import tokensieve.plan.plan as plan

    assert ts.BAT is bat.BAT is list_methods()["bat"]
    assert ts.make_plan is plan.make_plan
    assert ts.train.train.__module__ == "tokensieve.train.run"


def test_star_import_gives_everything_but_rooms() -> None:
    names: dict[str, object] = {}
    exec("from tokensieve import *", names)
    del names["__builtins__"]
    assert sorted(names) == ts.__all__
    assert {cls.__name__ for cls in list_methods().values()} <= set(names)
    assert not {"train", "export", "plan", "methods"} & set(names)


def test_dir_and_help_show_every_name() -> None:
    assert set(ts.__all__) | {"train", "methods", "__doc__"} <= set(dir(ts))
    page = pydoc.plain(pydoc.render_doc(ts))
    assert "class BAT(" in page and "make_plan(" in page and ts.__doc__ is not None and ts.__doc__[:40] in page


def test_names_survive_pickling_and_reloading() -> None:
    assert pickle.loads(pickle.dumps(ts.BAT(keep=0.5))) == ts.BAT(keep=0.5)
    assert pickle.loads(pickle.dumps((ts.apply, ts.Tokens, ts.parse))) == (ts.apply, ts.Tokens, ts.parse)
    before = ts.apply, ts.BAT
    assert importlib.reload(ts) is ts
    assert (ts.apply, ts.BAT) == before


def test_a_wrong_name_is_refused_and_the_right_one_suggested() -> None:
    with pytest.raises(AttributeError, match="module 'tokensieve' has no attribute 'Bat'") as caught:
        ts.Bat  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Bat", ts)
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from tokensieve import nonsense")
    assert not hasattr(ts, "method"), "names that hid modules are gone"


def test_a_method_of_another_package_is_there_without_an_edit(tmp_path: Path) -> None:
    """By an entry point; written with names of the face of ``tokensieve.methods`` alone."""
    (tmp_path / "theirs.py").write_text(METHOD.partition("reveal_type")[0], encoding="utf-8")
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[tokensieve.methods]\nevery-other = theirs:EveryOther\n", encoding="utf-8")
    code = (
        "import tokensieve as ts; print(ts.EveryOther(sites=[1]), 'EveryOther' in ts.__all__, 'EveryOther' in dir(ts),"
        "ts.parse('every-other') == (ts.EveryOther(),), ts.EveryOther.__module__)"
    )
    assert python(code, tmp_path) == "every-other:sites=[1] True True True theirs"
    assert not hasattr(ts, "EveryOther")


def test_what_is_generated_from_the_faces_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_faces", ROOT / "scripts" / "generate_faces.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pages = script.documents()
    assert {path.name for path in pages} == {"__init__.pyi", "api.md"} and len(pages) == len(FACES) + 1
    for path, wanted in pages.items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path} is stale: run `make docs`"
