"""Write what is known of the package's faces: an ``__init__.pyi`` beside each of them, and docs/api.md.

    python scripts/generate_faces.py            write them
    python scripts/generate_faces.py --check    write nothing; exit 1 and name what is stale

Source: the table of public names in the ``__init__.py`` of each face (``tokensieve.utils.lazy.Face``) and the classes
in methods/, which are found. A new method needs no edit: Python has it at once, editors after this script has run.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

import tokensieve
from docs_text import ROOT, WIDTH, wrap, write_or_check
from tokensieve.methods._method import Method
from tokensieve.utils.lazy import Face

NOTICE = "Written by scripts/generate_faces.py"
SECTION = re.compile(r"^[A-Z][A-Za-z ]*:$")  # "Args:", "Raises:", …: where the prose of a docstring ends


def faces() -> dict[str, Face]:
    """Every face by the name of its package, the package's own first."""
    rooms = [room.name for room in pkgutil.iter_modules(tokensieve.__path__, "tokensieve.") if room.ispkg]
    found = {name: getattr(importlib.import_module(name), "_face", None) for name in ["tokensieve", *sorted(rooms)]}
    return {name: face for name, face in found.items() if isinstance(face, Face)}


# What type checkers read


def stub(face: Face) -> str:
    """The ``__init__.pyi`` of a face: its names, imported; as ruff would sort and wrap them."""
    where = dict(face.where)
    where |= {name: (cls.__module__, cls.__name__) for name, cls in face.classes().items() if _of_this_package(cls)}
    lines = {(module, own, shown): f"from {module} import {own} as {shown}" for shown, (module, own) in where.items()}
    imports = [lines[key] for key in sorted(lines, key=lambda key: (key[0], _isort(key[1]), key[2]))]
    rooms = [f"from {face.package} import {room} as {room}" for room in sorted(face.rooms)]
    names = "".join(f'    "{name}",\n' for name in sorted(where, key=_isort))
    body = "\n".join([*rooms, *imports])
    return f"# {NOTICE} from the table in __init__.py; run `make docs`.\n{body}\n\n__all__ = [\n{names}]\n"


def _of_this_package(cls: type) -> bool:
    """Whether a method is ours: methods of other packages are not installed everywhere."""
    return cls.__module__.partition(".")[0] == "tokensieve"


def _isort(name: str) -> tuple[int, str]:
    """How ruff orders imports from one module and ``__all__``: constants, then classes, then the rest."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2, name)


# What people read


def api_page(known: dict[str, Face]) -> str:
    """docs/api.md: every public name with its signature and what its docstring begins with, room by room."""
    parts = [
        "# Public names\n\n"
        f"<!-- {NOTICE}; edit docstrings, then run `make docs`. -->\n\n"
        + wrap(
            "Everything that a program may rely on, by the package that it is imported from. Options and cards of the "
            "methods: [methods.md](methods.md)."
        )
    ]
    told: dict[int, str] = {}  # object → the package under which it is described
    for package, face in known.items():
        parts.append(f"## {package}\n\n{prose(importlib.import_module(package), every=False)}")
        elsewhere = []
        for name in [*sorted(face.where), *sorted(n for n, cls in face.classes().items() if _of_this_package(cls))]:
            value = face.get(name)
            if id(value) in told and not isinstance(value, str):
                elsewhere.append(f"`{name}` ({told[id(value)]})")
                continue
            told[id(value)] = package
            language = "py" if inspect.isclass(value) or inspect.isfunction(value) else "text"
            code = f"```{language}\n{declaration(name, value)}\n```"
            parts.append(f"### `{name}`\n\n{code}\n\n{prose(value)}".rstrip() + "\n")
        if elsewhere:
            parts.append(wrap("Also here, and described above: " + ", ".join(elsewhere) + "."))
    return "\n".join(parts)


def declaration(name: str, value: object) -> str:
    """How a name is called, or what it is: one line, or one a parameter where it would be too long."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return f"{name}: {type(value).__name__}" if isinstance(value, (str, dict)) else f"{name} = {shown(value)}"
    kind = "class" if inspect.isclass(value) else "def"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{kind} {name}"
    parameters = parameters_of(signature)
    answer = ""
    if kind == "def" and signature.return_annotation is not inspect.Signature.empty:
        answer = f" -> {annotation(signature.return_annotation)}"
    line = f"{kind} {name}({', '.join(parameters)}){answer}"
    if len(line) <= WIDTH:
        return line
    return f"{kind} {name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){answer}"


def parameters_of(signature: inspect.Signature) -> list[str]:
    """Each parameter as it is written, with the marks of positional and of keyword-only ones."""
    written: list[str] = []
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            written.append("*")
            starred = True
        starred |= parameter.kind is inspect.Parameter.VAR_POSITIONAL
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = stars + parameter.name
        typed = parameter.annotation is not inspect.Parameter.empty
        if typed:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {shown(parameter.default)}" if typed else f"={shown(parameter.default)}"
        written.append(text)
    return written


def annotation(value: object) -> str:
    """A type as it was written."""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def shown(value: object) -> str:
    """A default or a constant, the same in every process."""
    text = value.__name__ if inspect.isfunction(value) or inspect.isclass(value) else repr(value)
    return re.sub(r"<factory>|<.* at 0x[0-9a-f]+>", "…", text).replace("typing.", "")


def prose(value: object, every: bool = True) -> str:
    """What a docstring says before its sections, as Markdown; of a method the first paragraph alone."""
    if not every:
        text = inspect.cleandoc(value.__doc__ or "")
    elif inspect.isclass(value) or inspect.isfunction(value):
        text = inspect.getdoc(value) or ""
    else:
        return ""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if lines and SECTION.match(lines[0]):
            break
        if all(line.startswith("    ") for line in lines):
            paragraphs.append("```text\n" + textwrap.dedent(paragraph) + "\n```")
        elif lines and not lines[0].startswith(">>>"):
            paragraphs.append(wrap(paragraph.replace("``", "`")).strip())
    if inspect.isclass(value) and issubclass(value, Method) and value is not Method:
        del paragraphs[1:]
    return "\n\n".join(re.sub(r"::$", ":", paragraph) for paragraph in paragraphs) + ("\n" if paragraphs else "")


def documents() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    known = faces()
    folder = ROOT / "src"
    pages = {folder.joinpath(*name.split("."), "__init__.pyi"): stub(face) for name, face in known.items()}
    return {**pages, ROOT / "docs" / "api.md": api_page(known)}


def main() -> int:
    return write_or_check(documents(), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
