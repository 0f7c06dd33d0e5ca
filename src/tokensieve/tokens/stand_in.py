"""Standing in for a tensor: code that reads the state between two blocks reads the restored tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError

# What only a tensor that stays can do: gradients and changes would reach a restored one, which nothing reads again.
LASTING = ("grad", "register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "retain_grad", "backward")
READ = "_read"  # where a state keeps what it was read as, beside its fields
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "and", "or", "xor")


class StandIn:
    """What other code takes for a (B, P + N, C) tensor.

    Indexing it, computing and comparing with it, or handing it to a torch function such as a norm restores it first. So
    layers that are read come out whole, and the rest stays compact. What would change it, or wait for its gradient, is
    refused.
    """

    def whole(self) -> Tensor:
        """The tensor that it stands in for: the same to every reader."""
        if torch.compiler.is_compiling():
            return self.restore("last")
        read = self.__dict__.get(READ)
        if read is None or read[2] != torch.is_grad_enabled():
            whole = self.restore("last").view(self.shape)
            version = None if whole.is_inference() else whole._version
            read = self.__dict__[READ] = (whole, version, torch.is_grad_enabled())
        return read[0]  # type: ignore[no-any-return]

    def written(self) -> bool:
        """Whether a reader has written into what ``whole`` gave it; in inference mode nobody counts that."""
        read = self.__dict__.get(READ)
        return read is not None and read[1] is not None and read[0]._version != read[1]

    def restore(self, fill: Literal["last", "mean"] | None = None) -> Tensor:
        """Every original token, those that are gone as ``fill`` says; default: as the model was reduced with."""
        raise NotImplementedError  # each subclass has its own, as of the two below

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that it stands in for."""
        raise NotImplementedError

    def cannot(self, what: str) -> str:
        """Why ``what`` is refused, and what to do instead."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        writes = name.endswith("_") and not name.endswith("__") and bool(args) and isinstance(args[0], cls)
        if writes or kwargs.get("inplace") or isinstance(kwargs.get("out"), cls):
            state = next(value for value in (*args, kwargs.get("out")) if isinstance(value, cls))
            raise TokensieveError(state.cannot(f"be changed in place ({name})"))
        args = tuple(_as_tensor(a) for a in args)
        return func(*args, **{k: _as_tensor(v) for k, v in kwargs.items()})

    def __getitem__(self, item: Any) -> Tensor:
        return self.whole()[item]

    def __setitem__(self, item: Any, value: Any) -> NoReturn:
        raise TokensieveError(self.cannot("be written into"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        if name in LASTING or (name.endswith("_") and not name.endswith("__")):
            raise TokensieveError(self.cannot(f"have its {name} asked for"))
        return getattr(self.whole(), name)

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return bool(self.whole())


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


def _in_place(name: str) -> Callable[..., Any]:
    def refused(self: StandIn, other: Any) -> NoReturn:
        raise TokensieveError(self.cannot(f"be changed in place ({name})"))

    refused.__name__ = name
    return refused


# Python looks operators up on the class, past ``__getattr__``.
for _name in OPERATORS:
    for _side in ("", "r"):
        setattr(StandIn, f"__{_side}{_name}__", _operator(f"__{_side}{_name}__"))
    setattr(StandIn, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "len", "iter", "array", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
