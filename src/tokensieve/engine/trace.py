"""The record of one run: tokens per block, and what every site decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.engine.block import SievedBlock, Site
from tokensieve.engine.probe import evaluating, uncompiled
from tokensieve.errors import TokensieveError
from tokensieve.families._family import Family
from tokensieve.families._locate import family_of
from tokensieve.tokens.record import Event, Stage
from tokensieve.tokens.state import Tokens


@dataclass(frozen=True)
class Trace:
    """What one run did: tokens per block, what every site decided, and the state before the last restore."""

    stages: tuple[Stage, ...]
    events: tuple[Event, ...]
    tokens: Tokens | None


def trace(model: nn.Module, x: Tensor | Mapping[str, Any]) -> Trace:
    """Run an applied model on ``x``, images or inputs by name, in eval mode and return its record. Blocks before the
    first site are dense.

    A diagnostic: it hooks the model while it runs, so do not call it from two threads on one model.
    """
    located = family_of(model)
    layout = located.family.layout(located.owner)
    lengths: dict[int, int] = {}
    states: list[Tokens] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, number=number: lengths.__setitem__(  # type: ignore[misc]
                number, _length(located.family, module, (args or tuple(kwargs.values()))[0])
            ),
            with_kwargs=True,
        )
        for number, block in enumerate(located.family.blocks(located.owner))
        if not isinstance(block, SievedBlock)
    ]
    handles += [
        site.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        for site in model.modules()
        if isinstance(site, Site)
    ]
    try:
        with evaluating(model), uncompiled(model):
            model(**x) if isinstance(x, Mapping) else model(x)
    finally:
        for handle in handles:
            handle.remove()
    dense = tuple(Stage(n, lengths[n], lengths[n]) for n in range(layout.depth) if n in lengths)
    if not states and any(isinstance(module, Site) for module in model.modules()):
        raise TokensieveError(
            "the run left no record: the blocks ran in a graph that was made before, or without their methods; trace "
            "the model before it is compiled or captured"
        )
    if states and not isinstance(states[-1], Tokens):
        raise TokensieveError(
            "the record of a run is of images that lose as many tokens each, and these differ in size: trace images of "
            "one size at a time"
        )
    if not states:
        return Trace(dense, (), None)
    return Trace(dense + states[-1].stages, states[-1].events, states[-1])


def _length(family: Family, block: nn.Module, x: Tensor) -> int:
    """How many tokens an image has in ``x``, as a dense ``block`` is given it."""
    form = family.form(block, x)
    return x.shape[-2] if form is None else form.taken(x).shape[1]
