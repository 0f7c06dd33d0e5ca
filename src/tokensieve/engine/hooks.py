"""Hooks on the modules around the blocks: hidden states are restored where they are read, and masks are refused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import RefusedError
from tokensieve.families._reading import Reader, Reading
from tokensieve.tokens.stand_in import StandIn


@dataclass(eq=False)
class RestoredHiddenStates:
    """The forward hook of a ``Reading``: only the engine's own blocks get to see ``Tokens``."""

    reader: Reader | None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output of ``module``, with the hidden states that are read restored."""
        if isinstance(output, tuple):
            return type(output)(self._restored(part) for part in output)
        for name, part in output.items() if isinstance(output, dict) else ():
            if _holds_states(part):
                output[name] = self._restored(part)
        return output

    def _restored(self, part: Any) -> Any:
        """``part``, or where it is a sequence of states the tensors of those that are read."""
        if not _holds_states(part):
            return part
        read = range(len(part)) if self.reader is None else self.reader.reads()
        return type(part)(
            state.restore("last") if isinstance(state, StandIn) and number in read else state
            for number, state in enumerate(part)
        )


def _holds_states(part: Any) -> bool:
    """Whether this part of an output is a sequence with reduced tokens in it."""
    return isinstance(part, (tuple, list)) and any(isinstance(state, StandIn) for state in part)


@dataclass(eq=False)
class RefusedArguments:
    """The hook in front of a module whose tokens are reduced: an attention mask would be for tokens that are gone, and
    maps of attention are nowhere.

    Attributes:
        place: of ``attention_mask`` among the arguments of the module, or None where it takes none.
    """

    place: int | None

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Refuse a mask, and a wish for maps.

        Raises:
            RefusedError: there is one.
        """
        by_place = () if self.place is None else args[self.place :][:1]
        if kwargs.get("attention_mask") is not None or any(value is not None for value in by_place):
            raise RefusedError(
                "a model with reduced tokens takes no attention mask: its tokens are not where the mask expects them; "
                "ts.remove(model) gives the dense model back"
            )
        if kwargs.get("output_attentions"):
            raise RefusedError(
                "a model with reduced tokens hands out no attentions: the fused kernel holds no map, and rows and "
                "columns would be of fewer tokens; ts.trace(model, images) says which there are, and the dense model "
                "gives maps after ts.remove(model) and model.set_attn_implementation('eager')"
            )


def refuse_block_mask(kwargs: dict[str, Any], biased: bool) -> None:
    """Refuse masks among a block's arguments; those that say nothing stay, since a block may ask for them, those that
    may be of padding (``engine.padding``), and those of a ``biased`` family, which are no masks.

    Raises:
        RefusedError: there is one.
    """
    masks = [] if biased else [kwargs.get(name) for name in ("attn_mask", "attention_mask")]
    compiling = torch.compiler.is_compiling()  # what a mask hides is not known there
    if any(mask is not None for mask in masks if compiling or not isinstance(mask, Tensor)) or kwargs.get("is_causal"):
        raise RefusedError(
            "a model with reduced tokens takes no attn_mask, attention_mask or is_causal: its tokens are not where "
            "the mask expects them; ts.remove(model) gives the dense model back"
        )


def attach(reading: Reading) -> None:
    """Restore what ``reading`` reads from now on."""
    reading.module.register_forward_hook(RestoredHiddenStates(reading.reader))


def refuse_arguments(owner: nn.Module) -> None:
    """Refuse attention masks and wishes for attentions given to ``owner`` from now on, where it takes any."""
    parameters = inspect.signature(type(owner).forward).parameters
    arguments = list(parameters)
    place = arguments.index("attention_mask") - 1 if "attention_mask" in arguments else None
    if place is not None or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        owner.register_forward_pre_hook(RefusedArguments(place), with_kwargs=True)


def detach(module: nn.Module) -> None:
    """Take what ``attach`` and ``refuse_arguments`` put on ``module`` away again."""
    drop_hooks(module, RestoredHiddenStates, RefusedArguments)


def drop_hooks(module: nn.Module, *kinds: type) -> None:
    """Take the hooks of these ``kinds`` off ``module``, in front of its forward and behind it."""
    for key, before in list(module._forward_pre_hooks.items()):
        if isinstance(before, kinds):
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, behind in list(module._forward_hooks.items()):
        if isinstance(behind, kinds):
            del module._forward_hooks[key]
            module._forward_hooks_always_called.pop(key, None)
