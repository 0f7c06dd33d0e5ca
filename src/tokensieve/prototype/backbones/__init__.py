"""Architectures of their own, one file each, registered with timm by importing this package.

The folder is walked; a new file needs no line here. Only names enter timm's registry: nothing is built.
"""

from __future__ import annotations

import importlib
import pkgutil

from timm.models import list_models

for _file in pkgutil.iter_modules(__path__, __name__ + "."):
    importlib.import_module(_file.name)


def own_backbones() -> dict[str, tuple[str, ...]]:
    """What each architecture is, in a sentence, and the names that ``timm.create_model`` knows its sizes by."""
    found: dict[str, tuple[str, ...]] = {}
    for file in pkgutil.iter_modules(__path__, __name__ + "."):
        names = list_models(module=file.name.rpartition(".")[2])
        if names:
            doc = importlib.import_module(file.name).__doc__ or ""
            found[doc.strip().split("\n")[0].rstrip(".")] = tuple(names)
    return found
