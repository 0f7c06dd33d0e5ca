"""How a module is taken over: its class gains a mixin in front, and loses it again.

The module stays the object it was, with its submodules, names, hooks and state-dict keys. Others change modules in the
same way, before or after: FSDP puts a class of its own in front, and accelerate sets ``forward`` on the module itself
and keeps the one it found in an attribute. Whatever the order, the mixin's forward runs inside of theirs.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any

from torch import nn

from tokensieve.errors import RefusedError


class TakenOver(nn.Module):
    """Base of the mixins that ``take_over`` puts in front of a module's class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin, base = type(self).__bases__
        return _revive, (mixin, base), self.__getstate__()  # type: ignore[no-untyped-call]


def take_over(module: nn.Module, mixin: type[TakenOver]) -> None:
    """Put ``mixin`` in front of the class of ``module``.

    Raises:
        RefusedError: ``forward`` was set on the module itself, by code that keeps the one before out of reach.
    """
    base, own = type(module), vars(module)
    mixed = _mixed_class(mixin, base)  # type: ignore[arg-type]
    if "forward" in vars(mixin):
        kept = _bound_in(module, base.forward)
        if "forward" in own and not kept:
            raise RefusedError(
                f"forward of a {base.__name__} was replaced on the module itself (by {_named(own['forward'])}), so "
                "methods in it would never be asked: put the model's own forward back (del module.forward), call "
                "ts.apply, and replace forward afterwards"
            )
        own.update(dict.fromkeys(kept, MethodType(mixed.forward, module)))
    module.__class__ = mixed


def give_back(module: nn.Module) -> None:
    """Take the mixin away again; a module that was not taken over stays as it is."""
    if not isinstance(module, TakenOver):
        return
    mixed = type(module).forward
    module.__class__ = base = _without_mixin(type(module))  # type: ignore[assignment,arg-type]
    vars(module).update(dict.fromkeys(_bound_in(module, mixed), MethodType(base.forward, module)))


def _bound_in(module: nn.Module, forward: Any) -> list[str]:
    """The attributes of ``module`` that hold its own ``forward``, as accelerate keeps it while its hook is there."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is forward
    ]


def _named(forward: Any) -> str:
    function = getattr(forward, "func", forward)  # of a functools.partial
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


@cache
def _mixed_class(mixin: Any, base: Any) -> Any:
    """``base`` with ``mixin`` in front of it, under its own name; one class per pair."""
    # Transformers looks up what a class records by str(class), which is made of module and qualified name; and by the
    # name alone how checkpoints call its weights, which class a config belongs to, and what accelerate may not split.
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    own["_taken_over_from"] = base
    return type(base.__name__, (mixin, base), own)


@cache
def _without_mixin(cls: Any) -> Any:
    """The class that was taken over; classes that others derived from ours since then are derived from it anew."""
    if "_taken_over_from" in vars(cls):
        return vars(cls)["_taken_over_from"]
    if not issubclass(cls, TakenOver):
        return cls
    # A forward that wraps ours, as transformers gives to every class derived from its layers, is given anew.
    left = [name for name, value in vars(cls).items() if name == "forward" and hasattr(value, "__wrapped__")]
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__", *left)}
    return type(cls.__name__, tuple(map(_without_mixin, cls.__bases__)), own)


def _revive(mixin: type[nn.Module], base: type[nn.Module]) -> nn.Module:
    cls: type[nn.Module] = _mixed_class(mixin, base)  # type: ignore[arg-type]
    return cls.__new__(cls)
