"""The dataclasses that the state is made of: how they change, and how torch sees the tensors inside."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

T = TypeVar("T")


def changed(node: T, **changes: Any) -> T:
    """What ``dataclasses.replace`` gives, without its walk over the fields, which takes longer than a kernel."""
    if torch.compiler.is_dynamo_compiling():
        return replace(node, **changes)  # type: ignore[type-var]
    new: T = object.__new__(type(node))
    new.__dict__.update(node.__dict__, **changes)
    return new


def register(cls: type, tensors: tuple[str, ...]) -> None:
    """Make a dataclass a node of torch's pytrees: FSDP, checkpointing and export then treat it as they do a tuple.

    Args:
        cls: the dataclass.
        tensors: its fields that hold tensors, or what holds such; all others are constants.
    """
    others = tuple(f.name for f in fields(cls) if f.name not in tensors)
    pytree.register_pytree_node(
        cls,
        lambda state: ([getattr(state, name) for name in tensors], tuple(getattr(state, name) for name in others)),
        lambda values, rest: cls(**dict(zip(tensors, values, strict=True)), **dict(zip(others, rest, strict=True))),
        serialized_type_name=f"tokensieve.{cls.__name__}",
    )
