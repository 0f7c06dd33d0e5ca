"""Every method by name: found in methods/, in methods/prototype/, and by the entry points of other packages."""

from __future__ import annotations

from functools import cache

from tokensieve.errors import TokensieveError
from tokensieve.methods._method import Method
from tokensieve.utils.discovery import by_name, classes_in
from tokensieve.utils.names import nearest

RECONSTRUCTIONS = "tokensieve.methods.prototype"  # known by name alone: that room stands above this one
PACKAGES = ("tokensieve.methods", RECONSTRUCTIONS)


@cache
def list_methods() -> dict[str, type[Method]]:
    """Every method by name, sorted."""
    return by_name(classes_in(PACKAGES, Method, "tokensieve.methods"), "methods")


def method_class(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        TokensieveError: there is none; names the nearest.
    """
    known = list_methods()
    if name in known:
        return known[name]
    raise TokensieveError(f"unknown method {name!r}{nearest(name, known)}; known are {', '.join(known)}")


def is_reconstruction(method: type[Method]) -> bool:
    """Whether a method was written from a source that says less than one needs: an abstract, or an idea."""
    return method.__module__.startswith(RECONSTRUCTIONS)
