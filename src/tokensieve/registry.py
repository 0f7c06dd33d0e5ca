"""Discovery: methods and families are found by walking their folders and by entry points. There is no table.

Entry-point groups for packages of others: ``tokensieve.methods`` and ``tokensieve.families``, each naming a class.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from torch import nn

from tokensieve import families as families_folder
from tokensieve import methods as methods_folder
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.family import Family
from tokensieve.method import Method

NEAR = 0.6  # likeness from which a name may be what somebody meant


@dataclass(frozen=True)
class Located:
    """Where in a model its blocks are: the family that runs them and the module that owns them."""

    family: Family
    owner: nn.Module


def _classes(folder: ModuleType, base: type, group: str) -> Iterator[type]:
    for module_info in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        module = importlib.import_module(module_info.name)
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


def _by_name(classes: Iterable[type], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cls in classes:
        if getattr(cls, "__abstractmethods__", None):
            continue
        name = cls.name  # type: ignore[attr-defined]
        if name in found and found[name] is not cls:
            raise TokensieveError(f"two {kind} are called {name!r}: {found[name].__module__} and {cls.__module__}")
        found[name] = cls
    return dict(sorted(found.items()))


@cache
def methods() -> dict[str, type[Method]]:
    """Every method by name, sorted."""
    return _by_name(_classes(methods_folder, Method, "tokensieve.methods"), "methods")


@cache
def families() -> dict[str, Family]:
    """Every family by name, sorted."""
    found = _by_name(_classes(families_folder, Family, "tokensieve.families"), "families")
    return {name: cls() for name, cls in found.items()}


def method_class(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        TokensieveError: there is none; names the nearest.
    """
    known = methods()
    if name in known:
        return known[name]
    raise TokensieveError(f"unknown method {name!r}{nearest(name, known)}; known are {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for error messages, or nothing when no name is near; case does not matter.

    A name is near as a whole, or by its beginning: who types the start of a long one means it. Of equals the shortest.
    """
    given = name.lower()

    def likeness(candidate: str) -> float:
        parts = {candidate.lower(), candidate.lower()[: len(given)]}
        return max(difflib.SequenceMatcher(None, given, part).ratio() for part in parts)

    likest = max(sorted(known, key=len), key=likeness, default=None)
    return f", did you mean {likest!r}?" if likest is not None and likeness(likest) >= NEAR else ""


def irreducible(model: nn.Module) -> nn.Module | None:
    """The part of ``model`` that says in a class attribute ``irreducible`` why no token can leave it, or None."""
    return next((part for part in model.modules() if isinstance(getattr(part, "irreducible", None), str)), None)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of ``model`` in the order they run; of one that cannot be reduced those that it names itself.

    Raises:
        RefusedError: no family knows the blocks; says why.
    """
    own: Any = irreducible(model)
    if own is not None:
        return list(own.all_blocks())
    located = family_of(model)
    return located.family.blocks(located.owner)


def family_of(model: nn.Module) -> Located:
    """The family of ``model`` and the module inside it that owns the blocks.

    A model that no token can leave says why in a class attribute ``irreducible``, and gives its blocks by a method
    ``all_blocks``: it is trained and measured, and never reduced.

    Raises:
        RefusedError: no family knows the blocks, or the family or the model itself refuses; says why.
    """
    own: Any = irreducible(model)
    if own is not None:
        raise RefusedError(f"{type(own).__name__} cannot be reduced: {own.irreducible}")
    for module in model.modules():
        for family in families().values():
            if family.matches(module):
                reason = family.refuse(module)
                if reason is not None:
                    raise RefusedError(f"{type(module).__name__} cannot be reduced: {reason}")
                return Located(family, module)
    kinds = sorted({type(b).__name__ for m in model.modules() for b in _children_named_blocks(m)})
    seen = f"its blocks are {', '.join(kinds)}" if kinds else "it has no list of blocks"
    raise RefusedError(
        f"no family matches {type(model).__name__}: {seen}; supported are "
        + "; ".join(f"{f.name} ({f.description})" for f in families().values())
    )


def _children_named_blocks(module: nn.Module) -> list[nn.Module]:
    lists = (getattr(module, name, None) for name in ("blocks", "layers", "layer"))
    return [block for blocks in lists if isinstance(blocks, (nn.Sequential, nn.ModuleList)) for block in blocks]
