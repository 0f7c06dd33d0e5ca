"""Discovery: classes are found by walking folders and by entry points. No table lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any

from tokensieve.errors import TokensieveError


def classes_in(packages: Iterable[str], base: type, group: str) -> Iterator[type]:
    """Every subclass of ``base`` that is defined in a file of one of the ``packages``, then those of entry points.

    Args:
        packages: full names; files whose names begin with an underscore are infrastructure and are passed over.
        base: what the classes derive from.
        group: the entry-point group by which other distributions name classes of theirs.

    Raises:
        TokensieveError: an entry point gives something else.
    """
    for package in packages:
        folder = importlib.import_module(package)
        for file in pkgutil.iter_modules(folder.__path__):
            if file.name.startswith("_"):
                continue
            module = importlib.import_module(f"{package}.{file.name}")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
                    yield value
    for point in entry_points(group=group):
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise TokensieveError(
                f"entry point {point.name!r} of group {group!r} gives {loaded!r}, "
                f"expected a subclass of {base.__name__}"
            )
        yield loaded


def by_name(classes: Iterable[type], kind: str) -> dict[str, Any]:
    """Classes that can be made, by their ``name``, sorted.

    Raises:
        TokensieveError: two of them have one name.
    """
    found: dict[str, Any] = {}
    for cls in classes:
        if getattr(cls, "__abstractmethods__", None):
            continue
        name = cls.name  # type: ignore[attr-defined]
        if name in found and found[name] is not cls:
            raise TokensieveError(f"two {kind} are called {name!r}: {found[name].__module__} and {cls.__module__}")
        found[name] = cls
    return dict(sorted(found.items()))
