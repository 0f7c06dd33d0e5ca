"""Architectures of their own, one file each, registered with timm: importing tokensieve is enough to create them.

The folder is walked; a new file needs no line here. Only names enter timm's registry: nothing is built.
"""

from __future__ import annotations

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__, __name__ + "."):
    importlib.import_module(_file.name)
