"""Letting torch see the tensors inside the state: FSDP, checkpointing and export then treat it as they do a tuple."""

from __future__ import annotations

from dataclasses import fields

from torch.utils import _pytree as pytree


def register(cls: type, tensors: tuple[str, ...]) -> None:
    """Make a dataclass a node of torch's pytrees.

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
