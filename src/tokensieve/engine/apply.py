"""Applying methods to a model and taking them away again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.engine import around, grid, hooks, packed
from tokensieve.engine.around import REDUCTION, SievedOwner
from tokensieve.engine.block import SievedBlock, Site
from tokensieve.engine.probe import check_identity, device_of
from tokensieve.engine.reduction import Reduction, settle
from tokensieve.engine.running import SITE
from tokensieve.engine.schedule import schedule
from tokensieve.engine.takeover import TakenOver, give_back, take_over
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._layout import Layout
from tokensieve.families._locate import Located, another_owner, family_of
from tokensieve.methods._config import Config
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse
from tokensieve.tokens.state import Fill


def resolve(methods: Method | str | Sequence[Method]) -> tuple[Method, ...]:
    """One composition of methods from what a user may hand over: a method, a spec, or a sequence of methods."""
    return parse(methods) if isinstance(methods, str) else given_methods(methods, Method)


def given_methods(methods: Any, kind: type) -> tuple[Any, ...]:
    """What a user gave that is no spec, one method or a sequence, as a composition.

    Raises:
        TokensieveError: something in it is not of this kind, or nothing was given.
    """
    chosen = tuple(methods) if isinstance(methods, (list, tuple)) else (methods,)
    for entry in chosen:
        if not isinstance(entry, kind):
            raise TokensieveError(
                f"expected a method such as ts.BAT(keep=0.7) or a spec such as 'bat:keep=0.7', got {entry!r}"
            )
    if not chosen:
        raise TokensieveError("no method given: name at least one, for example ts.apply(model, ts.BAT(keep=0.7))")
    return chosen


def apply(
    model: nn.Module,
    methods: Method | str | Sequence[Method],
    *,
    fill: Fill | str = "auto",
    probe: Tensor | Mapping[str, Any] | None = None,
    multiple: int | None = None,
    masked: bool = False,
    taps: Sequence[int] | None = None,
) -> nn.Module:
    """Reduce the tokens of the ViT in ``model``, in place; ``tokensieve.language.apply.apply`` says what is what.

    Raises:
        RefusedError: no family matches, or the blocks are not what the family takes them for.
        TokensieveError: a method's settings do not fit the model, or two methods are in each other's way.
    """
    chosen = resolve(methods)
    refuse_changed(model, applied(model))
    located = family_of(model)
    _refuse_two(model, located)
    # Everything is settled and proved before anything changes.
    layout = located.family.layout(located.owner)
    plan = schedule(chosen, layout)
    pools = located.family.pools(model, located.owner)
    reduction = settle(located.family, layout, chosen, plan, fill, pools, multiple, masked, _taps(taps, layout))
    check_identity(model, probe, taps=masked or any(_is_watched(method, layout) for method in chosen))
    # The sites are made, from the first block on where a method acts.
    blocks = located.family.blocks(located.owner)
    sites = []
    with torch.device("cpu"):
        for number, block in enumerate(blocks[reduction.first :], start=reduction.first):
            site = Site(reduction, number, plan.get(number, ()))
            site.to(device=device_of(block), dtype=next(block.parameters()).dtype)
            sites.append(site.train(block.training))
    _refuse_late(model, sites)
    # Their blocks are taken over.
    for block, site in zip(blocks[reduction.first :], sites, strict=True):
        take_over(block, SievedBlock)
        block.add_module(SITE, site)
        site.own = block.own()  # type: ignore[operator]
        located.family.know(block)
    _attach_around(model, located, reduction)
    return model


def _attach_around(model: nn.Module, located: Located, reduction: Reduction) -> None:
    """Let what stands around the blocks hand on plain tensors, say the grid of an image, and refuse masks."""
    family, owner = located.family, located.owner
    if family.images is None:  # of timm
        take_over(owner, SievedOwner)
        vars(owner)[REDUCTION] = reduction
    else:
        around.attach(owner, reduction)
    if family.packed:
        packed.attach(owner, family)
    # Only for those: a compiler puts no ContextVar into its graph, and images of another size than the model's set one.
    looks = any(method.undivided or method.looks_at_grid for method in reduction.methods)
    if looks and family.images is not None and not family.packed:
        grid.attach(owner, family, reduction.layout.grid)
    for entry in family.readings(model, owner):
        hooks.attach(entry)
    hooks.refuse_arguments(owner)


def _is_watched(method: Method, layout: Layout) -> bool:
    """Whether a method reads the fused attention, or changes what it is computed on."""
    reads = method.needs(layout) or method.sharing(layout.depth)
    return bool(reads) or method.log_size_attention or method.ragged


def _taps(taps: Sequence[int] | None, layout: Layout) -> frozenset[int]:
    given: Any = () if taps is None else taps
    known = range(layout.depth)
    if not isinstance(given, (list, tuple, range, set, frozenset)) or any(
        isinstance(block, bool) or block not in known for block in given
    ):
        raise TokensieveError(
            f"taps must be 0-based block numbers from 0 to {layout.depth - 1}, such as [2, 5, 8, 11], got {taps!r}"
        )
    return frozenset(given)


def remove(model: nn.Module) -> nn.Module:
    """Take all methods off ``model``, in place: the exact original again. Learned parts of methods go with them."""
    for module in list(_model(model).modules()):
        hooks.detach(module)
        grid.detach(module)
        packed.detach(module)
        around.detach(module)
        if isinstance(module, SievedBlock):
            del module._modules[SITE]
        give_back(module)
    return model


def sites(model: nn.Module) -> list[Site]:
    """The sites of a model with methods applied, in block order; empty for a dense model."""
    return [module for module in _model(model).modules() if isinstance(module, Site)]


def is_applied(model: nn.Module) -> bool:
    """Whether methods are applied to ``model``."""
    return any(isinstance(module, TakenOver) for module in _model(model).modules())


def applied(model: nn.Module) -> tuple[Method, ...]:
    """The methods applied to ``model``, in order; empty for a dense model."""
    found = sites(model)
    return found[0].reduction.methods if found else ()


def multiple_of(model: nn.Module) -> int | None:
    """What the token counts of ``model`` are rounded to, or None."""
    found = sites(model)
    rounding = found[0].reduction.rounding if found else None
    return None if rounding is None else rounding.multiple


def taps_of(model: nn.Module) -> list[int] | None:
    """The blocks whose output is a plain tensor, or None where no site was asked for it."""
    return [site.block for site in sites(model) if site.tapped] or None


def _model(model: nn.Module) -> nn.Module:
    """``model``, which must be one."""
    if not isinstance(model, nn.Module):
        raise TokensieveError(f"expected a model, a torch.nn.Module, got {model!r}")
    return model


def _refuse_two(model: nn.Module, located: Located) -> None:
    """Refuse a model with two ViTs in it, of which one would be reduced."""
    other = another_owner(model, located)
    if other is not None:
        names = {id(one): name for name, one in model.named_modules()}
        both = " and ".join(repr(names[id(one)]) for one in (located.owner, other))
        raise RefusedError(f"the model has more than one ViT, {both}: apply methods to each by itself")


def _refuse_late(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse learned parts in a model whose weights are sharded already: nothing would keep theirs alike."""
    sharded = (kind for part in model.modules() for kind in type(part).__mro__ if kind.__name__ == "FSDPModule")
    learned = next((key for site in sites for key in site.learned), None)
    if learned is not None and next(sharded, None) is not None:
        raise RefusedError(
            f"{learned.rpartition('_')[0]} has learned parts, and fully_shard has been called on the model, which then "
            "does not shard them: apply methods first, and call fully_shard afterwards"
        )


def refuse_changed(model: nn.Module, methods: Sequence[Config]) -> None:
    """Refuse a model that is reduced already, by these methods, or wrapped.

    Raises:
        TokensieveError, RefusedError: it is.
    """
    if is_applied(model):
        raise TokensieveError(
            f"methods are applied already ({', '.join(map(str, methods))}): call ts.remove(model) first, "
            "or give all of them to one ts.apply as a list"
        )
    wrapped = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrapped):
        raise RefusedError(
            f"the model is wrapped in {type(model).__name__}: apply methods to the plain model first, then wrap it"
        )
