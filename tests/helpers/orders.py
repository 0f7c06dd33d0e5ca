"""Something done to a model before methods are applied or afterwards: the answers must be the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import CONFIGS, images, run
from tokensieve.families._locate import family_of

ORDERS = pytest.mark.parametrize("first", ["apply", "others"])
SPEC = "tome:r=4"


def blocks_of(model: nn.Module) -> Any:
    located = family_of(model)
    return located.family.block_list(located.owner)


def both_orders(
    first: str, model: nn.Module, others: Callable[[nn.Module], Any], config: str = "tome", x: Tensor | None = None
) -> None:
    """The reduced answer whatever comes first, bit for bit, and the dense one once methods are removed."""
    x = images(2) if x is None else x
    torch.manual_seed(0)  # learned parts are drawn anew with every apply
    dense = run(model, x)
    reduced = run(ts.apply(model, CONFIGS[config]), x)
    ts.remove(model)
    torch.manual_seed(0)
    if first == "others":
        others(model)
        ts.apply(model, CONFIGS[config])
    else:
        others(ts.apply(model, CONFIGS[config]))
    assert torch.equal(run(model, x), reduced)
    assert not torch.equal(reduced, dense)
    assert not ts.is_applied(ts.remove(model))
    assert torch.equal(run(model, x), dense)
