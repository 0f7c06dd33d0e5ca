"""Hidden states that a module gives out besides its answer, restored at the layers that somebody reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.tokens import Tokens


class Reader(ABC):
    """Whoever reads hidden states from the output of a module inside it."""

    @abstractmethod
    def reads(self) -> Collection[int]:
        """Which of the hidden states; 0 is what goes into the first block."""


@dataclass
class Reading:
    """A module whose output carries hidden states, as ``hidden_states`` or somewhere in a tuple.

    Attributes:
        module: the module.
        reader: who reads some of them; the others stay as they are for a module further out. None: all are read.
    """

    module: nn.Module
    reader: Reader | None = None


@dataclass(eq=False)
class RestoredHiddenStates:
    """The forward hook of a ``Reading``: nobody but the engine's own blocks gets to see ``Tokens``."""

    reader: Reader | None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output of ``module``, with the hidden states that are read restored."""
        if isinstance(output, tuple):
            return type(output)(self._restored(part) for part in output)
        hidden = getattr(output, "hidden_states", None)
        if hidden is not None:
            output["hidden_states"] = self._restored(hidden)
        return output

    def _restored(self, part: Any) -> Any:
        """``part``, or where it is a sequence of states the tensors of those that are read."""
        if not isinstance(part, (tuple, list)):
            return part
        read = range(len(part)) if self.reader is None else self.reader.reads()
        return tuple(
            state.restore("last") if isinstance(state, Tokens) and number in read else state
            for number, state in enumerate(part)
        )


def attach(reading: Reading) -> None:
    """Restore what ``reading`` reads from now on."""
    reading.module.register_forward_hook(RestoredHiddenStates(reading.reader))


def detach(module: nn.Module) -> None:
    """Take what ``attach`` put on ``module`` away again."""
    for key, hook in list(module._forward_hooks.items()):
        if isinstance(hook, RestoredHiddenStates):
            del module._forward_hooks[key]
