"""Faces: the public names of a package, each imported when it is first asked for.

A face is a table in the package's ``__init__.py``. Python reads the table; type checkers and editors read the
``__init__.pyi`` beside it, which ``scripts/generate_faces.py`` writes from the same table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


class Face:
    """What a package shows. Its ``__init__.py`` makes one and binds ``__getattr__`` and ``__dir__`` to it::

        _face = Face(__name__, {"tokensieve.plan.plan": ["make_plan"]})
        __getattr__, __dir__ = _face.get, _face.listed

    Args:
        package: full name of the package.
        names: module → the public names that it defines; ``"VERSION as __version__"`` shows one by another name.
        rooms: subpackages that are attributes of the package without having been imported.
        classes: gives more classes by name, found rather than listed; called when a capitalised name is asked for that
            the table does not have, and to list everything. Default: none.
    """

    def __init__(
        self,
        package: str,
        names: Mapping[str, Sequence[str]],
        *,
        rooms: Sequence[str] = (),
        classes: Callable[[], Mapping[str, type]] | None = None,
    ) -> None:
        self.package = package
        self.rooms = tuple(rooms)
        self.where: dict[str, tuple[str, str]] = {}  # public name → (module, the name it has there)
        for module, entries in names.items():
            for entry in entries:
                own, _, shown = entry.partition(" as ")
                self.where[shown or own] = (module, own)
        self._classes = classes

    def classes(self) -> dict[str, type]:
        """The classes that are found rather than listed, by name; those whose names the table has are left out."""
        found = self._classes() if self._classes is not None else {}
        return {name: cls for name, cls in found.items() if name[:1].isupper() and name not in self.where}

    def public(self) -> list[str]:
        """The package's ``__all__``: everything but its rooms, sorted."""
        return sorted({*self.where, *self.classes()})

    def listed(self) -> list[str]:
        """What ``dir`` of the package gives: its public names, its rooms, and what every module has."""
        own = {name for name in vars(sys.modules[self.package]) if name.startswith("__") and name.endswith("__")}
        return sorted({*own, *self.public(), *self.rooms})

    def get(self, name: str) -> object:
        """The attribute ``name`` of the package, imported now.

        Raises:
            AttributeError: the package shows no such name.
        """
        if name == "__all__":
            return self.public()
        module = sys.modules[self.package]
        if name in self.where:
            place, own = self.where[name]
            value: object = getattr(importlib.import_module(place), own)
        elif name in self.rooms:
            return importlib.import_module(f"{self.package}.{name}")  # the import binds it
        elif name[:1].isupper() and name in (found := self.classes()):
            return found[name]  # not bound: the next call asks again whether it is still there
        else:
            message = f"module {self.package!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=module)
        setattr(module, name, value)
        return value
