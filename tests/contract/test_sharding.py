"""FSDP2 before methods are applied or afterwards: the right answer in either order, or a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tokensieve as ts
from tests.helpers.models import CONFIGS, FIRST, build, images, run
from tests.helpers.orders import ORDERS, SPEC, blocks_of, both_orders
from tokensieve.methods.tokenlearner import Fuser

every_family = pytest.mark.parametrize(("family", "name"), FIRST)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@ORDERS
@every_family
def test_sharded_by_fsdp2(family: str, name: str, first: str, one_process: Any) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    def shard(model: nn.Module) -> None:
        for block in blocks_of(model):
            fully_shard(block, mesh=one_process)
        fully_shard(model, mesh=one_process)

    model = build(family, name)
    kind = type(blocks_of(model)[0])
    both_orders(first, model, shard)
    block = blocks_of(model)[0]
    assert isinstance(block, FSDPModule) and isinstance(block, kind) and not ts.is_applied(model)
    ts.apply(model, SPEC).train()(images(2))  # and on


def sharded(model: nn.Module, mesh: Any, *kinds: type[nn.Module]) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    parts = [part for part in model.modules() if isinstance(part, kinds)] if kinds else []
    for part in [*parts, *blocks_of(model)]:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("config", ["dtem", "dynamicvit", "as-vit", "tokenlearner"])
def test_learned_parts_are_sharded_with_their_blocks_and_never_forgotten(config: str, one_process: Any) -> None:
    model = build(*FIRST[0])
    torch.manual_seed(0)
    reduced = run(ts.apply(model, CONFIGS[config]), images(2))
    kinds = (Fuser,) if config == "tokenlearner" else ()
    assert torch.equal(run(sharded(model, one_process, *kinds), images(2)), reduced)
    model.train()(images(2)).square().sum().backward()
    with pytest.raises(ts.RefusedError, match=f"^{config} has learned parts, and fully_shard has been called"):
        ts.apply(sharded(build(*FIRST[0]), one_process), CONFIGS[config])


def test_a_way_back_that_is_sharded_with_its_block(one_process: Any) -> None:
    model = sharded(ts.apply(build(*FIRST[0]), "tokenlearner"), one_process)
    with pytest.raises(ts.RefusedError, match="the Fuser of a method runs behind the last block"):
        run(model, images(2))
