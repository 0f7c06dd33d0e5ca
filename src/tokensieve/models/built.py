"""Models built on a backbone: what saving and loading know of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn


class BuiltModel(nn.Module):
    """A model of timm without classifier, and what was built on it. A subclass may live in any room above.

    Class attributes:
        saved_as: the key of its config in a saved model; ``utils.above`` names the module with ``from_config`` for it.

    Attributes:
        backbone: the model of timm.
    """

    saved_as: ClassVar[str]
    backbone: nn.Module

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """What rebuilds it around its backbone, JSON-ready."""
