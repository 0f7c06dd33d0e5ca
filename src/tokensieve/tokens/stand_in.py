"""Standing in for a tensor: code that reads the state between two blocks reads the restored tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class StandIn:
    """What other code takes for a (B, P + N, C) tensor.

    Indexing it, computing with it, or handing it to a torch function such as a norm restores it first. So layers that
    are read come out whole, and the rest stays compact.
    """

    def whole(self) -> Tensor:
        """The tensor that it stands in for."""
        raise NotImplementedError  # each subclass has its own

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple(_as_tensor(a) for a in args)
        return func(*args, **{k: _as_tensor(v) for k, v in (kwargs or {}).items()})

    def __getitem__(self, item: Any) -> Tensor:
        return self.whole()[item]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.whole(), name)


def _as_tensor(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.whole()
    if isinstance(value, (list, tuple)) and any(isinstance(entry, StandIn) for entry in value):
        return type(value)([_as_tensor(entry) for entry in value])
    return value


def _operator(name: str) -> Callable[..., Any]:
    def of_whole(self: StandIn, *args: Any) -> Any:
        return getattr(self.whole(), name)(*map(_as_tensor, args))

    of_whole.__name__ = name
    return of_whole


# Python looks operators up on the class, past ``__getattr__``.
for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    for _side in ("", "r"):
        setattr(StandIn, f"__{_side}{_name}__", _operator(f"__{_side}{_name}__"))
for _name in ("neg", "abs", "len", "iter", "array"):
    setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
