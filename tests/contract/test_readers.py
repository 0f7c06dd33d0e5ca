"""Readers between the blocks: hooks get tensors with gradients that flow, or a sentence that says how they do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.cases import every_case, kinds_of
from tests.helpers.models import CONFIGS, DEFAULTS, DEPTH, FIRST, build, images, run
from tokensieve.families._locate import family_of

every_family = pytest.mark.parametrize(("family", "name"), FIRST)
# Those whose tokens go on as they are handed out: not mixed, and not answered for by what lies beside them.
HARD = [
    name
    for name, (method,) in DEFAULTS.items()
    if "soft" not in kinds_of(name) and type(method).behind is ts.Method.behind
]


def blocks_of(model: nn.Module) -> Any:
    located = family_of(model)
    return located.family.block_list(located.owner)


def state_behind(model: nn.Module, number: int) -> Any:
    seen: list[Any] = []
    handle = blocks_of(model)[number].register_forward_hook(lambda block, args, out: seen.append(out))
    run(model, images(2))
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module")
def state() -> Any:
    return state_behind(ts.apply(build(*FIRST[0]), "tome:r=4"), 1)


def test_sizes_are_those_of_a_tensor(state: Any) -> None:
    whole = state.restore("last")
    assert state.size(0) == 2 and state.size() == whole.size() == state.shape and state.dim() == 3
    assert state.numel() == whole.numel() and len(state) == 2


@pytest.mark.parametrize(
    "compute",
    [
        operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.floordiv, operator.mod,
        operator.add, operator.sub, operator.mul, operator.truediv, operator.pow,
    ],
)  # fmt: skip
def test_operators_are_those_of_a_tensor(state: Any, compute: Callable[[Any, Any], Any]) -> None:
    whole = state.restore("last")
    for other in (2.0, whole, state):
        tensor = whole if other is state else other
        for ours, theirs in (
            (compute(state, other), compute(whole, tensor)),
            (compute(other, state), compute(tensor, whole)),
        ):
            assert type(ours) is Tensor
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_state_is_a_key_of_its_own(state: Any) -> None:
    assert {state: 1}[state] == 1 and state is not None
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.register_hook(print),
        lambda o: o.retain_grad(),
        lambda o: o.requires_grad_(),
        lambda o: o.backward(torch.ones(2, 21, 48)),
        lambda o: o.grad,
        lambda o: o.mul_(2),
        lambda o: o.zero_(),
        lambda o: operator.setitem(o, 0, 1.0),
        lambda o: operator.iadd(o, 1.0),
        lambda o: operator.imul(o, 1.0),
    ],
)
def test_what_would_change_nothing_is_refused(state: Any, change: Callable[[Any], Any]) -> None:
    with pytest.raises(ts.TokensieveError, match=r"output of block 1 is the compact state .*taps=\[1\]"):
        change(state)


@pytest.mark.parametrize(
    "write",
    [
        lambda o: o[:, 0].zero_(),
        lambda o: o.view(-1).mul_(2),
        lambda o: o.detach().mul_(2),
        lambda o: o.chunk(2)[0].zero_(),
        lambda o: torch.relu_(o),
        lambda o: torch.nn.functional.relu(o, inplace=True),
        lambda o: torch.nn.ReLU(inplace=True)(o),
        lambda o: torch.mul(o, 2, out=o),
    ],
)
def test_writing_into_what_a_block_hands_on_is_refused(write: Callable[[Any], Any]) -> None:
    model = ts.apply(build(*FIRST[0]), "tome:r=4")

    def hook(block: nn.Module, args: Any, out: Any) -> None:
        write(out)

    blocks_of(model)[1].register_forward_hook(hook)
    with pytest.raises(ts.TokensieveError, match=r"cannot be changed in place.*taps=\[1\]"):
        run(model, images(2))


def test_gradients_behind_a_soft_assignment_are_refused() -> None:
    model = ts.apply(build(*FIRST[0]), "tokenlearner:tokens=5:sites=[1]", taps=[1, 2])
    blocks_of(model)[2].register_full_backward_hook(lambda block, given, got: None)
    with pytest.raises(ts.TokensieveError, match="behind a soft assignment"):
        model(images(2)).sum()


@every_family
def test_backward_hooks_on_a_block_ask_for_taps(family: str, name: str) -> None:
    model = ts.apply(build(family, name), "tome:r=4")
    blocks_of(model)[2].register_full_backward_hook(lambda block, grad_in, grad_out: None)
    with pytest.raises(ts.RefusedError, match=r"a backward hook waits at block 2.*taps=\[1, 2\]"):
        model(images(2))
    run(model, images(2))  # where there are no gradients it waits for nothing


def tapped(family: str, name: str, config: str, taps: list[int]) -> nn.Module:
    return ts.apply(build(family, name), CONFIGS[config], taps=taps)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out[0]


@every_case(HARD, FIRST, FIRST[:1])
def test_the_gradient_of_a_tapped_block_is_that_of_its_tokens(family: str, name: str, config: str) -> None:
    """To nudge the tensor along its gradient changes the answer by what the gradient says."""
    model = tapped(family, name, config, [1]).double()
    x = images(2, torch.float64)
    plain, found = {}, {}
    answer(model, x).square().sum().backward()
    plain = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen: list[Tensor] = []

    def listen(block: nn.Module, args: Any, out: Tensor) -> None:
        assert type(out) is Tensor and out.shape[1] >= 20
        out.register_hook(seen.append)

    handle = blocks_of(model)[1].register_forward_hook(listen)
    listened = answer(model, x)
    listened.square().sum().backward()
    handle.remove()
    (gradient,) = seen
    assert gradient.abs().sum() > 0 and gradient.isfinite().all()
    # What is listened to changes neither the answer nor any other gradient.
    assert torch.equal(listened, answer(tapped_like(model), x))
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == plain.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-6, atol=1e-9, msg=key)


def tapped_like(model: nn.Module) -> nn.Module:
    return model


@every_family
def test_full_backward_hooks_of_tapped_blocks_fire_and_the_reduction_goes_on(family: str, name: str) -> None:
    model = tapped(family, name, "tome", [1, 2])
    x = images(2)
    wanted, stages = answer(model, x), [stage.processed for stage in ts.trace(model, x).stages]
    seen: list[tuple[Any, Any]] = []
    blocks_of(model)[2].register_full_backward_hook(lambda block, given, got: seen.append((given, got)))
    found = answer(model, x)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    ((given, got),) = seen
    assert got[0].shape == given[0].shape == (2, got[0].shape[1], 48) and got[0].abs().sum() > 0
    assert given[0].abs().sum() > 0
    assert [stage.processed for stage in ts.trace(model, x).stages] == stages


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_tapped_tensor_that_is_changed_in_place_counts(mode: Callable[[], Any]) -> None:
    """As one that is put in its place does: the tokens go on from what the hook has made of it."""
    x = images(2)
    changed = {}
    for how in ("in place", "replaced"):
        model = ts.apply(build(*FIRST[0]), "tome:r=4", taps=[1])

        def double(block: nn.Module, args: Any, out: Tensor, how: str = how) -> Tensor | None:
            if how == "replaced":
                return out * 2
            out.mul_(2)
            return None

        blocks_of(model)[1].register_forward_hook(double)
        with mode():
            changed[how] = model(x)
    torch.testing.assert_close(changed["in place"], changed["replaced"])
    assert not torch.allclose(changed["in place"], run(ts.apply(build(*FIRST[0]), "tome:r=4", taps=[1]), x))


class GradCam:
    """Class activation maps as they are made for ViTs: activations times the mean of their gradients, by hooks."""

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.model, self.kept, self.gradients = model, [], []
        layer.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, out: Any) -> None:
        self.kept.append(out.cpu().detach())
        if out.requires_grad:
            out.register_hook(lambda gradient: self.gradients.append(gradient.cpu().detach()))

    def __call__(self, x: Tensor, prefix: int) -> Tensor:
        self.model(x)[:, 3].sum().backward()
        values, gradients = self.kept[-1][:, prefix:], self.gradients[-1][:, prefix:]
        weights = gradients.mean(dim=1, keepdim=True)
        return (values * weights).sum(dim=2).clamp(min=0)


def test_class_activation_maps_of_a_block() -> None:
    model = ts.apply(build(*FIRST[0]), "tome:r=4")
    with pytest.raises(ts.TokensieveError, match=r"taps=\[2\]"):
        GradCam(model, blocks_of(model)[2])(images(2), 5)
    tapped_model = ts.apply(build(*FIRST[0]), "tome:r=4", taps=[2])
    maps = GradCam(tapped_model, blocks_of(tapped_model)[2])(images(2), 5)
    dense = build(*FIRST[0])
    wanted = GradCam(dense, blocks_of(dense)[2])(images(2), 5)
    assert maps.shape == wanted.shape == (2, 20) and maps.max() > 0


def test_torchinfo() -> None:
    torchinfo = pytest.importorskip("torchinfo")
    model = ts.apply(build(*FIRST[0]), "tome:r=4", taps=range(DEPTH))
    summary = torchinfo.summary(model, input_data=images(2), verbose=0)
    assert summary.total_params == sum(p.numel() for p in build(*FIRST[0]).parameters())


def test_pytorch_grad_cam() -> None:
    cam = pytest.importorskip("pytorch_grad_cam")

    def as_grid(x: Tensor) -> Tensor:
        return x[:, 5:].unflatten(1, (4, 5)).permute(0, 3, 1, 2)

    model = ts.apply(build(*FIRST[0]), "tome:r=4", taps=[2])
    maps = cam.GradCAM(model=model, target_layers=[blocks_of(model)[2]], reshape_transform=as_grid)(
        images(2), targets=None
    )
    assert maps.shape == (2, 64, 80) and maps.max() > 0
    untapped = ts.apply(build(*FIRST[0]), "tome:r=4")
    with pytest.raises(ts.TokensieveError, match=r"taps=\[2\]"):
        cam.GradCAM(model=untapped, target_layers=[blocks_of(untapped)[2]], reshape_transform=as_grid)(
            images(2), targets=None
        )
