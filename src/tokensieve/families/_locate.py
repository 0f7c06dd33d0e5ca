"""Which family a model is of, and the module inside it that owns the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._family import Family
from tokensieve.utils.discovery import by_name, classes_in


@dataclass(frozen=True)
class Located:
    """Where in a model its blocks are: the family that runs them and the module that owns them."""

    family: Family
    owner: nn.Module


@cache
def list_families() -> dict[str, Family]:
    """Every family by name, sorted."""
    found = by_name(classes_in(("tokensieve.families",), Family, "tokensieve.families"), "families")
    return {name: cls() for name, cls in found.items()}


def irreducible(model: nn.Module) -> nn.Module | None:
    """The part of ``model`` that says in a class attribute ``irreducible`` why no token can leave it, or None."""
    return next((part for part in model.modules() if isinstance(getattr(part, "irreducible", None), str)), None)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of ``model`` in the order they run; of a model that cannot be reduced the blocks that it names itself.

    Raises:
        RefusedError: no family knows the blocks; says why.
    """
    own: Any = irreducible(model)
    if own is not None:
        return list(own.all_blocks())
    located = family_of(model)
    return located.family.blocks(located.owner)


def family_of(model: nn.Module) -> Located:
    """The family of ``model`` and the module inside it that owns the blocks.

    A model that no token can leave says why in a class attribute ``irreducible``, and gives its blocks by a method
    ``all_blocks``: it is trained and measured, and never reduced.

    Raises:
        RefusedError: no family knows the blocks, or the family or the model itself refuses; says why.
    """
    if not isinstance(model, nn.Module):
        raise TokensieveError(f"expected a model, a torch.nn.Module, got {model!r}")
    own: Any = irreducible(model)
    if own is not None:
        raise RefusedError(f"{type(own).__name__} cannot be reduced: {own.irreducible}")
    for module in model.modules():
        for family in list_families().values():
            if family.matches(module):
                owner = _innermost(family, module)
                reason = family.refuse(owner)
                if reason is not None:
                    raise RefusedError(f"{type(owner).__name__} cannot be reduced: {reason}")
                return Located(family, owner)
    for module in model.modules():
        for family in list_families().values():
            if any(map(family.is_block, module.children())):
                raise RefusedError(
                    f"no family matches {type(model).__name__}: it has blocks of family {family.name}, but no module "
                    f"that {family.name} takes for their owner (by default one with a list called blocks and "
                    "num_prefix_tokens); a family for it overrides matches() and block_list()"
                )
    kinds = sorted({type(b).__name__ for m in model.modules() for b in _children_named_blocks(m)})
    seen = f"its blocks are {', '.join(kinds)}" if kinds else "it has no list of blocks"
    raise RefusedError(
        f"no family matches {type(model).__name__}: {seen}; tokensieve families lists the {len(list_families())} that "
        "are supported"
    )


def another_owner(model: nn.Module, located: Located) -> nn.Module | None:
    """A module of ``model`` that owns other blocks than those ``located``, and could be reduced as well; or None."""
    blocks = located.family.block_list(located.owner)
    inside = {id(part) for part in located.owner.modules()}
    for module in (part for part in model.modules() if id(part) not in inside):
        for family in list_families().values():
            if family.matches(module) and family.block_list(module) is not blocks and family.refuse(module) is None:
                return _innermost(family, module)
    return None


def _innermost(family: Family, module: nn.Module) -> nn.Module:
    """The module inside ``module`` that has the blocks itself: wrappers, of torch.compile and of PEFT for example, hand
    on every attribute of what they wrap, and so match as well."""
    blocks = family.block_list(module)
    return [one for one in module.modules() if family.matches(one) and family.block_list(one) is blocks][-1]


def _children_named_blocks(module: nn.Module) -> list[nn.Module]:
    lists = (getattr(module, name, None) for name in ("blocks", "layers", "layer"))
    return [block for blocks in lists if isinstance(blocks, (nn.Sequential, nn.ModuleList)) for block in blocks]
