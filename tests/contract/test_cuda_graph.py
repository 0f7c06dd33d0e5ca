"""A reduced model can be held by a CUDA graph: it never waits for the device, has no shape that depends on values, and
copies nothing from the host.

Checked without a GPU, operator by operator: on the CPU, and on a CUDA device that torch only pretends to have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import CONFIGS, DEFAULTS, FIRST, PATCHES, build, images, run
from tokensieve.families._layout import Layout
from tokensieve.families._locate import family_of
from tokensieve.methods._method import Method
from tokensieve.methods._view import View
from tokensieve.tokens.decision import Assignment, keep_only

RAGGED = {config for config, methods in CONFIGS.items() if any(method.ragged for method in methods)}
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
FROM_PYTHON = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default}


class NotCapturableError(AssertionError):
    """An operator that no CUDA graph can hold."""


class Capturing(TorchDispatchMode):
    """Raises at the first operator that no CUDA graph can hold, from the first block of ``model`` to its answer.

    What comes before the blocks is timm's own: DINOv3 works its rotary table out on the host at every call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operators = 0
        self.watching = False
        located = family_of(model)
        located.family.blocks(located.owner)[0].register_forward_pre_hook(self._start)

    def _start(self, block: nn.Module, args: Any) -> None:
        self.watching = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not self.watching:
            return func(*args, **(kwargs or {}))
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func in INDEXING:  # static with positions, but a mask is turned into positions on the host
            if any(value.dtype in (torch.bool, torch.uint8) for value in given[1:]):
                raise NotCapturableError(f"{func} with a mask: its shape depends on values")
        elif VALUES & set(func.tags):
            raise NotCapturableError(f"{func} reads values on the host, or its shape depends on them")
        elif func in FROM_PYTHON:
            raise NotCapturableError(f"{func}: a tensor made from Python values is copied from the host")
        out = func(*args, **(kwargs or {}))
        made = [value for value in pytree.tree_leaves(out) if isinstance(value, Tensor)]
        if len({value.device for value in (*given, *made) if value.dim()}) > 1:
            raise NotCapturableError(f"{func} copies between devices")
        self.operators += 1
        return out


@contextmanager
def pretended_cuda(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Puts ``model`` on a CUDA device that only exists for shapes and dtypes; gives what takes images there."""
    if torch.version.cuda is None:
        pytest.skip("this build of torch knows no CUDA devices")
    with FakeTensorMode() as fake, torch.no_grad():

        def send(tensor: Tensor) -> Tensor:
            return fake.from_tensor(tensor).to("cuda")

        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(send(parameter), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = send(buffer)
        yield send


def warm(model: nn.Module) -> nn.Module:
    """The model after one run, which a graph needs before it is captured: untrained selectors say so there, once."""
    run(model, images(2))
    return model


@every_case([config for config in DEFAULTS if config not in RAGGED], FIRST)
def test_no_value_decides_and_nothing_comes_from_the_host(family: str, name: str, config: str) -> None:
    model = warm(ts.apply(build(family, name), CONFIGS[config]))
    x = images(2)
    with torch.no_grad(), Capturing(model) as capturing:
        model(x)
    assert capturing.operators > 100


@every_case([config for config in CONFIGS if config not in RAGGED], FIRST, FIRST[:1])
def test_the_same_on_a_pretended_cuda_device(family: str, name: str, config: str) -> None:
    model = ts.apply(build(family, name), CONFIGS[config])
    shape = run(model, images(2)).shape  # a run, which a graph needs before it is captured
    with pretended_cuda(model) as send:
        x = send(images(2))
        with torch.no_grad(), Capturing(model) as capturing:
            out = model(x)
    assert out.device.type == "cuda" and out.shape == shape
    assert capturing.operators > 100


# The tests above mean something only if they catch methods that break the rule.


def by_item(view: View) -> Tensor:
    first = int(view.x[0, 0].sum().item()) % 2
    return torch.arange(first, first + view.keep)


def by_truth(view: View) -> Tensor:
    return torch.arange(view.keep) if view.x.sum() > 0 else torch.arange(1, 1 + view.keep)


def by_nonzero(view: View) -> Tensor:
    return (view.x[0].sum(1) > -torch.inf).nonzero().flatten()[: view.keep]


def by_mask(view: View) -> Tensor:
    positions = torch.arange(view.count, device=view.x.device)
    return positions[positions < view.keep]


def by_unique(view: View) -> Tensor:
    return torch.arange(view.count, device=view.x.device).unique()[: view.keep]


def by_python_list(view: View) -> Tensor:
    return torch.tensor(list(range(view.keep)), device=view.x.device)


def by_the_host(view: View) -> Tensor:
    return torch.arange(view.keep).to(view.x.device)


def by_arithmetic(view: View) -> Tensor:
    return torch.arange(view.keep, device=view.x.device)


@dataclass(frozen=True, kw_only=True)
class Offender(Method):
    """Keeps the tokens that ``choose`` names."""

    choose: Callable[[View], Tensor]

    name = "offender-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (1,)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches // 2

    def assign(self, view: View) -> Assignment:
        return keep_only(self.choose(view).to(view.x.device).expand(view.x.shape[0], -1), view.count)


OFFENDERS = (by_item, by_truth, by_nonzero, by_mask, by_unique, by_python_list)


@pytest.mark.parametrize("choose", [*OFFENDERS, by_arithmetic])
def test_offenders_are_caught(choose: Callable[[View], Tensor]) -> None:
    model = ts.apply(build(*FIRST[0]), Offender(choose=choose))
    assert run(model, images(2)).shape == (2, 10)
    assert [stage.processed - 5 for stage in ts.trace(model, images(2)).stages] == [PATCHES, 10, 10, 10]
    with torch.no_grad(), Capturing(model):
        if choose is by_arithmetic:
            model(images(2))
        else:
            with pytest.raises(NotCapturableError):
                model(images(2))


@pytest.mark.parametrize("choose", [by_the_host, *OFFENDERS, by_arithmetic])
def test_offenders_are_caught_on_a_pretended_cuda_device(choose: Callable[[View], Tensor]) -> None:
    model = ts.apply(build(*FIRST[0]), Offender(choose=choose))
    with pretended_cuda(model) as send:
        x = send(images(2))
        with torch.no_grad(), Capturing(model):
            if choose is by_arithmetic:
                model(x)
            else:
                with pytest.raises(NotCapturableError):
                    model(x)
