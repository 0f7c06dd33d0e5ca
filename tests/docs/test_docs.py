"""The documentation is true: its Python runs, its commands and links exist, its tables follow the registry."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import generate_docs
import tokensieve as ts
from tokensieve.cli.app import app
from tokensieve.families._locate import list_families
from tokensieve.methods import _registry as registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT = 40


class Fence(NamedTuple):
    """One fenced block: the words after the three backticks, the line it starts on, and its text."""

    info: str
    line: int
    text: str


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Fence(match[1].strip(), text[: match.start()].count("\n") + 2, match[2])
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.M | re.S)
    ]


def python_pages() -> list[Path]:
    """The pages with Python on them."""
    return [page for page in PAGES if any(fence.info.startswith("python") for fence in fences(page))]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """``timm.create_model`` without downloads: the examples ask for pretrained weights and get random ones."""
    create: Callable[..., nn.Module] = timm.create_model

    def create_untrained(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_untrained)


@pytest.fixture
def add_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Save a source as one more file of the methods or the families, "methods/name.py", for one test."""
    rooms = {name: importlib.import_module(f"tokensieve.{name}") for name in ("methods", "families")}
    for name, room in rooms.items():
        (tmp_path / name).mkdir()
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path / name)])
    added: list[tuple[str, str]] = []

    def forget() -> None:
        registry.list_methods.cache_clear()
        list_families.cache_clear()

    def add(name: str, source: str) -> Path:
        file = tmp_path / name
        file.write_text(source, encoding="utf-8")
        added.append((file.parent.name, file.stem))
        forget()
        return file

    yield add
    for room_name, stem in added:
        sys.modules.pop(f"tokensieve.{room_name}.{stem}", None)
        vars(rooms[room_name]).pop(stem, None)
    forget()


SLOW_PAGES = {"speed.md", "serving.md"}  # one times a model at a dozen settings, one exports a tower


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW_PAGES else ()) for page in python_pages()],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("offline")
def test_python_runs(page: Path, add_file: Callable[[str, str], Path]) -> None:
    if re.search(r"^import .*\btransformers\b", page.read_text(encoding="utf-8"), flags=re.M):
        pytest.importorskip("transformers")
    names: dict[str, Any] = {"images": torch.randn(2, 3, 224, 224)}
    for fence in fences(page):
        language, _, option = fence.info.partition(" ")
        if language != "python":
            continue
        if option.startswith("file="):
            add_file(option.removeprefix("file="), fence.text)
        else:
            code = compile("\n" * (fence.line - 1) + fence.text, str(page), "exec")
            with torch.no_grad():
                exec(code, names)


def test_a_method_in_one_file(add_file: Callable[[str, str], Path]) -> None:
    """The method of CONTRIBUTING.md is one short file and appears in the registry, the commands and the tables."""
    (source,) = [f for f in fences(ROOT / "CONTRIBUTING.md") if f.info.endswith("file=methods/every_other.py")]
    assert len(source.text.splitlines()) <= LIMIT
    assert "every-other" not in registry.list_methods()
    add_file("methods/every_other.py", source.text)

    assert "every-other" in registry.list_methods()
    (config,) = ts.parse("every-other:sites=[1,2]")
    assert type(config)(**config.to_dict()["options"]) == config
    listed = CliRunner().invoke(app, ["methods"])
    assert listed.exit_code == 0 and "every-other" in listed.output
    assert "`every-other`" in generate_docs.methods_table()
    assert "`every-other`" in generate_docs.method_names()
    assert "## every-other" in generate_docs.methods_page()


def test_tables_tell_reconstructions_apart() -> None:
    known = registry.list_methods()
    rebuilt = {name for name, cls in known.items() if registry.is_reconstruction(cls)}
    assert "jmp" in rebuilt and "tome" not in rebuilt
    for row in generate_docs.methods_table().splitlines()[2:]:
        assert ("| reconstruction of [" in row) == (row.partition("`")[2].partition("`")[0] in rebuilt), row
    listed = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "400"}).output
    assert listed.count("(reconstruction)") == len(rebuilt)


def test_generated_parts_are_current() -> None:
    for path, wanted in generate_docs.documents().items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name} is stale: run `make docs`"


def test_specs_of_the_readme_are_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+:[^`]+)` \|", text, flags=re.M)
    assert rows
    for spec in rows + re.findall(r"--method (\S+)", text):
        assert ts.sweep(spec.rstrip("`"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Every ``tokensieve …`` line of a shell block names a command and options that exist."""
    root: Any = typer.main.get_command(app)
    for fence in fences(page):
        if fence.info != "sh":
            continue
        for line in fence.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "tokensieve":
                continue
            command = root.get_command(None, words[1])
            assert command is not None, f"{page.name}: no command {words[1]!r}"
            known = {flag for param in command.params for flag in param.opts + param.secondary_opts}
            assert {word for word in words if word.startswith("--")} <= known, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for targets in re.findall(r"^make ([a-z][a-z -]*?)(?:\s+#.*)?$", text, flags=re.M):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, flags=re.M), f"{page.name}: no make target {target!r}"


MOST_WORDS = 1300
WIDTH = 120


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    """Tables, code, pictures and links that fill a line of their own may be wider."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    wide = [line for line in prose.splitlines() if len(line) > WIDTH and not re.match(r"\||!?\[\S+$", line)]
    assert not wide, f"{page.name}: {wide[0]}"


def named_files(text: str) -> set[str]:
    """The files of this repository that a text names: paths in code spans, with a folder and an ending."""
    return set(re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|json|csv|toml))`", text))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    written = {fence.info.rpartition("/")[2] for fence in fences(page)}  # files that the reader is told to write
    for name in named_files(text):
        if name.rpartition("/")[2] in written:
            continue
        folders = (ROOT, page.parent, ROOT / "src", ROOT / "src" / "tokensieve")
        assert any((folder / name).exists() for folder in folders), f"{page.name} names {name}"
    for name in set(re.findall(r"\btokensieve(?:\.[a-z_]+)+", text)):
        assert importable(name), f"{page.name} names {name}"


def importable(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    try:
        importlib.import_module(name)
    except ImportError:
        package, _, rest = name.rpartition(".")
        return bool(package) and importable(package) and hasattr(importlib.import_module(package), rest)
    return True
