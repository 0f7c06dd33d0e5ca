"""Proof before change: every block is run both as it is and in its family's two halves, and compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._family import own_input_size
from tokensieve.families._locate import Located, family_of, irreducible


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def probe_input(model: nn.Module) -> Tensor:
    """A fixed random image (1, C, H, W) of the model's input size, on its device and in its dtype."""
    owner = irreducible(model)
    if owner is None:
        located = family_of(model)
        owner, size = located.owner, located.family.input_size(located.owner)
    else:
        size = own_input_size(owner)
    weight = next(owner.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *size, generator=generator) * 2 - 1
    return image.to(device=weight.device, dtype=weight.dtype)


def check_identity(model: nn.Module, probe: Tensor | None = None, taps: bool = True) -> None:
    """Run every block of a dense model both as it is and in its family's two halves, and compare bit by bit.

    Raises:
        RefusedError: a block differs, or (with ``taps``) its attention does not use the fused kernel.
        TokensieveError: the model does not run on the ``probe`` given.
    """
    located = family_of(model)
    family = located.family
    problems: list[str] = []
    seen: list[int] = []
    shapes: list[tuple[int, ...]] = []

    def compare(number: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            seen.append(number)
            shapes.append(tuple(args[0].shape))
            try:
                tap = Tap()
                half = family.tapped(block, args[0], tap, **family.keywords(args[1:], kwargs))
                if taps:
                    tap.attended()
                if not torch.equal(family.mlp(block, half), out):
                    differs = "differs from its two halves, which must do all that its forward does"
                    problems.append(f"block {number} ({type(block).__name__}) {differs}")
            except (AttributeError, TypeError, RuntimeError, RefusedError) as error:
                problems.append(f"block {number} ({type(block).__name__}): {error}")

        return hook

    handles = [
        block.register_forward_hook(compare(number), with_kwargs=True)
        for number, block in enumerate(family.blocks(located.owner))
    ]
    try:
        with evaluating(model):
            model(probe_input(model) if probe is None else probe)
    except Exception as error:
        if probe is None:
            raise
        given = f"of shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else repr(probe)
        raise TokensieveError(
            f"the model does not run on the probe {given} ({error}): give images (1, C, H, W) of its own kind"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise RefusedError(f"the forward of {type(model).__name__} never called its blocks: it cannot be reduced")
    if problems:
        more = f" (and {len(problems) - 1} more blocks)" if len(problems) > 1 else ""
        raise RefusedError(
            f"{type(located.owner).__name__} is not what family {family.name} expects: {problems[0]}{more}"
        )
    if probe is None:
        _check_layout(located, shapes)


def _check_layout(located: Located, shapes: list[tuple[int, ...]]) -> None:
    """Hold what the family says of the tokens to the ``shapes`` (1, L, C) that went into the blocks on an own image.

    Raises:
        RefusedError: they differ.
    """
    layout = located.family.layout(located.owner)
    _, length, dim = shapes[0]
    tokens = f"tokens ({layout.prefix} of the prefix and a grid of {' × '.join(map(str, layout.grid))})"
    said = {"blocks": layout.depth, "channels": layout.dim, tokens: layout.prefix + layout.patches}
    for (word, declared), ran in zip(said.items(), (len(shapes), dim, length), strict=True):
        if declared != ran:
            raise RefusedError(
                f"family {located.family.name} says that {type(located.owner).__name__} has {declared} {word}, and it "
                f"ran on {ran}: correct layout() of the family"
            )
