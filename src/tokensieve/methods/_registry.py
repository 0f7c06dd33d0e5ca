"""Every method by name: found in methods/, in methods/prototype/, and by the entry points of other packages."""

from __future__ import annotations

from functools import cache

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import Config
from tokensieve.methods._method import Method
from tokensieve.utils.discovery import by_name, classes_in
from tokensieve.utils.names import nearest

LANGUAGE = "tokensieve.methods.language"
RECONSTRUCTIONS = "tokensieve.methods.prototype"  # known by name alone: that room stands above this one
PACKAGES = ("tokensieve.methods", RECONSTRUCTIONS)


@cache
def list_methods() -> dict[str, type[Method]]:
    """Every method by name, sorted."""
    return by_name(classes_in(PACKAGES, Method, "tokensieve.methods"), "methods")


@cache
def list_language_methods() -> dict[str, type[Config]]:
    """Every method that acts in a vision-language model and outside of its tower, by name, sorted."""
    return by_name(classes_in((LANGUAGE,), Config, LANGUAGE), "methods")


def list_placed_methods() -> dict[str, type[Config]]:
    """Every method by name, wherever it acts: those of a ViT first."""
    return {**list_methods(), **list_language_methods()}


def placed_class(name: str) -> type[Config]:
    """The method called ``name``, wherever it acts.

    Raises:
        TokensieveError: there is none; names the nearest.
    """
    known = list_placed_methods()
    if name in known:
        return known[name]
    raise TokensieveError(
        f"unknown method {name!r}{nearest(name, known)}; known are {', '.join(list_methods())}, and in vision-language "
        "models those that tokensieve methods lists"
    )


def method_class(name: str) -> type[Method]:
    """The method called ``name`` that acts in a ViT.

    Raises:
        TokensieveError: there is none; names the nearest.
    """
    found = placed_class(name)
    if not issubclass(found, Method):
        raise TokensieveError(
            f"{name} acts in a vision-language model, outside of its tower: ts.apply takes it for a model with a "
            "language model in it; here a method for a ViT is expected"
        )
    return found


def is_reconstruction(method: type[Method]) -> bool:
    """Whether a method was written from a source that says less than one needs: an abstract, or an idea."""
    return method.__module__.startswith(RECONSTRUCTIONS)
