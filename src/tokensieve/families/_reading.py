"""Where a model hands out hidden states, and what reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn


class Reader(ABC):
    """A module that reads hidden states from the output of a module inside it."""

    @abstractmethod
    def reads(self) -> Collection[int]:
        """Which of the hidden states; 0 is what goes into the first block."""


@dataclass
class Reading:
    """A module whose output carries hidden states, as ``hidden_states`` or somewhere in a tuple.

    Attributes:
        module: the module.
        reader: what reads some of them; the others stay unchanged for a module further out. None: all are read.
    """

    module: nn.Module
    reader: Reader | None = None
