"""MACs counted equal MACs run: the formulas of ``measure.macs`` against every product that a forward pass makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.helpers.cases import every_case
from tests.helpers.models import CONFIGS, MODELS, build, images, shared
from tokensieve.engine.block import Site
from tokensieve.measure.macs import count


class Products(TorchFunctionMode):
    """Adds up the multiply-accumulates of linear layers, convolutions and attention while it is on and not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.paused = 0

    def pause(self, by: int) -> Any:
        """A hook that pauses (1) or goes on (-1)."""

        def hook(*_: Any) -> None:
            self.paused += by

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.paused:
            return result
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if func is F.linear:
            self.macs += result.numel() * given[0].shape[-1]
        elif func is F.conv2d:
            self.macs += result.numel() * given[1][0].numel()
        elif func is F.scaled_dot_product_attention:
            query, key, value = given[:3]
            self.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return result


def run_macs(model: nn.Module, x: Tensor) -> float:
    """MACs per image that running ``model`` on ``x`` takes, without what a method computes to decide."""
    products = Products()
    deciding = [part for site in model.modules() if isinstance(site, Site) for part in site.learned.modules()]
    handles = [part.register_forward_pre_hook(products.pause(1)) for part in deciding]
    handles += [part.register_forward_hook(products.pause(-1)) for part in deciding]
    with torch.no_grad(), products:
        model(x)
    for handle in handles:
        handle.remove()
    return products.macs / len(x)


@pytest.mark.parametrize(("family", "name"), MODELS)
def test_counted_macs_of_dense_models_are_those_run(family: str, name: str) -> None:
    model, x = build(family, name), images(2)
    assert count(model, x).total == run_macs(model, x)


@every_case(CONFIGS)
def test_counted_macs_of_reduced_models_are_those_run(family: str, name: str, config: str) -> None:
    if any(method.ragged for method in CONFIGS[config]):
        pytest.skip("a ragged method runs on padding that it does not count")
    model, x = shared(family, name, config), images(2)
    dense = run_macs(shared(family, name), x)
    counted = count(model, x).total
    assert counted == run_macs(model, x)
    assert counted < dense
