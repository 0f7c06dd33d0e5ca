"""Hold the package to its order of rooms: nothing imports up, in a circle, or through a face.

    python scripts/check_rooms.py [PACKAGE]     default src/tokensieve; exit 1 and a line for each breach

Every import counts, inside functions too; only those under ``if TYPE_CHECKING`` do not. For the order a module by name
counts as well: in the table of a face, and in ``import_module("…")``. The ways up have a table: ``utils/above.py``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Lower rooms first: a module imports from its own room and from those before it.
ORDER = (
    "utils", "ops", "tokens", "attention", "families", "methods", "engine", "models", "data", "measure",
    "plan", "pixels", "language", "answers", "export", "train", "prototype", "show", "demo", "cli",
)  # fmt: skip
ROOT = frozenset({"__init__", "__main__", "_version", "errors"})  # the modules that belong to no room
# The content of these two, found by walking their folders, stays apart: a method never sees a family, nor a family a
# method. Only infrastructure, whose file names begin with an underscore, may know infrastructure of the other.
APART = {"methods", "families"}


@dataclass
class Module:
    """A source file and what it imports.

    Attributes:
        name: dotted, without the package's own name; "" for the package itself.
        path: the file.
        imports: (line, name of a module of the package) of each import that counts.
        named: (line, name) of the modules that it names as text, in a face's table or in ``import_module``.
        face: whether it is an ``__init__`` that shows names of other modules.
    """

    name: str
    path: Path
    imports: list[tuple[int, str]] = field(default_factory=list)
    named: list[tuple[int, str]] = field(default_factory=list)
    face: bool = False

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


def read(root: Path) -> dict[str, Module]:
    """The modules of the package in ``root`` by name, their imports resolved."""
    modules: dict[str, Module] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    for module in modules.values():
        tree = ast.parse(module.path.read_text(encoding="utf-8"), str(module.path))
        for node in counted(tree.body):
            module.imports += [(node.lineno, target) for target in targets(node, module, modules, root.name)]
        table = list(face_table(tree, root.name)) if module.path.name == "__init__.py" else []
        module.face = bool(table)
        module.named = [*table, *by_name(tree, root.name)]
    return modules


def counted(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement below ``body`` that runs some time."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from counted(node.orelse)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    yield from counted([child])
                elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                    yield from counted(child.body)


def targets(node: ast.Import | ast.ImportFrom, module: Module, known: dict[str, Module], package: str) -> list[str]:
    """The modules of the package that an import statement names: of ``from a import b`` a.b where that is one."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        base = node.module or ""
        if node.level:
            here = [package, *module.name.split(".")] if module.name else [package]
            up = node.level - (module.path.name == "__init__.py")
            base = ".".join([*here[: len(here) - up], *([base] if base else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    found = []
    for name in names:
        if name.split(".")[0] != package:
            continue
        own = name.removeprefix(package).lstrip(".")
        while own not in known:
            own = own.rpartition(".")[0]
        found.append(own)
    return list(dict.fromkeys(found))


def face_table(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """The modules that the table of a face names: the keys of the dictionary given to ``_Face``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_Face":
            for table in node.args:
                for key in table.keys if isinstance(table, ast.Dict) else []:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key.lineno, key.value.removeprefix(package).lstrip(".")


def by_name(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """The modules of the package that ``import_module`` is given as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            given = node.args[0] if node.args else None
            if isinstance(given, ast.Constant) and str(given.value).startswith(f"{package}."):
                yield node.lineno, str(given.value).removeprefix(f"{package}.")


def breaches(root: Path) -> list[str]:
    """A line for everything in the package that breaks a rule, where it is and what to do."""
    known = read(root)
    found = []
    for module in known.values():
        if module.name and "." not in module.name and module.path.name != "__init__.py" and module.name not in ROOT:
            found.append(f"{module.path}: a module in the root: move it into a room")
        if module.room and module.path.parent != root and module.room not in ORDER:
            found.append(f"{module.path}: the room {module.room} has no place in the order: add it to {__file__}")
        for line, target in [*module.imports, *module.named]:
            found += [f"{module.path}:{line}: {reason}" for reason in reasons(module, known.get(target), target)]
    for circle in circles({name: {target for _, target in module.imports} for name, module in known.items()}):
        found.append(f"{root}: a circle of imports: {', '.join(circle)}: move what they share into a module below")
    return sorted(set(found))


def reasons(module: Module, target: Module | None, name: str) -> Iterator[str]:
    """Why ``module`` must not import ``target``."""
    if target is None:
        yield f"names {name}, which is no module"
        return
    if target.face and target is not module:
        yield f"imports through the face of {name or 'the package'}: import from the module that defines the name"
    if rank(target) > rank(module):
        yield f"{module.room or 'the root'} imports {name}, which stands above it: hand it in, or move it down"
    if {module.room, target.room} == APART and not (is_infrastructure(module) and is_infrastructure(target)):
        yield f"{module.name} imports {name}: a method never sees a family, nor a family a method"


def is_infrastructure(module: Module) -> bool:
    """Whether a module of methods/ or families/ is no content: the room's face, or a file with an underscore."""
    return module.path.name.startswith("_")


def rank(module: Module) -> int:
    """The place of a module's room in the order; the package's own face and ``__main__`` stand above everything."""
    if module.name in ("", "__main__"):
        return len(ORDER)
    return ORDER.index(module.room) if module.room in ORDER else -1


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        path.append(name)
        for target in sorted(graph[name]):
            if target not in number:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in path:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            part = path[path.index(name) :]
            del path[path.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return sorted(found)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "src/tokensieve")
    found = breaches(root)
    for line in found:
        print(line, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
