"""How a module is taken over: its class gains a mixin in front, and loses it again.

The module stays the object it was, with its submodules, names, hooks and state-dict keys.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class TakenOver(nn.Module):
    """Base of the mixins that ``take_over`` puts in front of a module's class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin, base = type(self).__bases__
        return _revive, (mixin, base), self.__getstate__()  # type: ignore[no-untyped-call]


def take_over(module: nn.Module, mixin: type[TakenOver]) -> None:
    """Put ``mixin`` in front of the class of ``module``."""
    module.__class__ = _mixed_class(mixin, type(module))  # type: ignore[arg-type]


def give_back(module: nn.Module) -> None:
    """Take the mixin away again; a module that was not taken over stays as it is."""
    if isinstance(module, TakenOver):
        module.__class__ = type(module).__bases__[1]


@cache
def _mixed_class(mixin: Any, base: Any) -> Any:
    """``base`` with ``mixin`` in front of it; one class per pair."""
    return type(f"Sieved{base.__name__}", (mixin, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _revive(mixin: type[nn.Module], base: type[nn.Module]) -> nn.Module:
    cls: type[nn.Module] = _mixed_class(mixin, base)  # type: ignore[arg-type]
    return cls.__new__(cls)
