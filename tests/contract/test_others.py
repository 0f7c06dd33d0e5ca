"""What others do to a model before or after methods are applied: the right answer in either order, or a sentence.

accelerate and forwards set on a block, compilers, checkpointing, switched-off kernels, changed blocks and heads.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.cases import every_case, kinds_of
from tests.helpers.models import CONFIGS, DEFAULTS, DEPTH, FIRST, FIRST_OF_TIMM, build, dense_answer, images, run
from tests.helpers.orders import ORDERS, SPEC, blocks_of, both_orders
from tokensieve.engine.takeover import TakenOver
from tokensieve.families._locate import family_of

every_family = pytest.mark.parametrize(("family", "name"), FIRST)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# accelerate


def dispatched(model: nn.Module) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def dispatched_by_block(model: nn.Module) -> None:
    accelerate = pytest.importorskip("accelerate")
    places = {name: "cpu" for name, _ in model.named_parameters()}
    for name, module in model.named_modules():
        if any(module is block for block in blocks_of(model)):
            places = {own: place for own, place in places.items() if not own.startswith(f"{name}.")} | {name: "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)


def offloaded(model: nn.Module) -> None:
    pytest.importorskip("accelerate").cpu_offload(model, execution_device="cpu")


@ORDERS
@pytest.mark.parametrize("others", [dispatched, dispatched_by_block, offloaded])
@every_family
def test_accelerate(family: str, name: str, others: Callable[[nn.Module], None], first: str) -> None:
    both_orders(first, build(family, name), others)


@ORDERS
@every_case(DEFAULTS, FIRST, FIRST[:1])
def test_every_method_under_dispatch(family: str, name: str, config: str, first: str) -> None:
    both_orders(first, build(family, name), dispatched, config)


def test_weights_on_disk(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    both_orders(
        "others", build(*FIRST[0]), lambda model: accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    )


def test_the_state_moves_as_a_whole_and_stays_compact() -> None:
    model, seen = ts.apply(build(*FIRST[0]), "tome:r=4"), []
    blocks_of(model)[0].register_forward_hook(lambda block, args, out: seen.append(out))
    run(model, images(2))
    (state,) = seen
    assert state.to("cpu") is state and state.to(device="cpu", non_blocking=True) is state
    moved = state.to("meta")
    assert type(moved) is ts.Tokens and moved.x.shape == state.x.shape
    assert moved.x.is_meta and moved.group.is_meta and moved.rep.is_meta
    whole = state.to(torch.float64)
    assert type(whole) is Tensor and torch.equal(whole, state.restore("last").double())


def test_weights_without_values_are_refused() -> None:
    model = build(*FIRST[0]).to("meta")
    with pytest.raises(ts.RefusedError, match="are on the meta device, which has no values: load them first"):
        ts.apply(model, SPEC)
    assert not ts.is_applied(model)


# A forward of somebody else's


def wrapped(block: nn.Module) -> None:
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)  # type: ignore[method-assign]


@every_family
def test_a_forward_that_was_wrapped_before_is_refused_and_one_wrapped_afterwards_runs(family: str, name: str) -> None:
    model = build(family, name)
    dense = dense_answer(family, name)
    reduced = run(ts.apply(build(family, name), SPEC), images(2))
    ts.apply(model, SPEC)
    for block in blocks_of(model):
        wrapped(block)
    assert torch.equal(run(model, images(2)), reduced)
    ts.remove(model)
    assert torch.equal(run(model, images(2)), dense)
    with pytest.raises(
        ts.RefusedError, match=r"was replaced on the module itself \(by .*wrapped.*: .*del module.forward"
    ):
        ts.apply(model, SPEC)
    assert not ts.is_applied(model) and torch.equal(run(model, images(2)), dense)
    for block in blocks_of(model):
        del block.forward
    assert torch.equal(run(ts.apply(model, SPEC), images(2)), reduced)


@pytest.mark.parametrize("number", range(DEPTH))
@every_family
def test_a_block_that_does_not_ask_its_methods_is_found_at_the_first_run(family: str, name: str, number: int) -> None:
    model = ts.apply(build(family, name), SPEC)
    block = blocks_of(model)[number]
    block.forward = types.MethodType(type(blocks_of(build(family, name))[0]).forward, block)
    with pytest.raises(ts.RefusedError, match=f"block {number} ran without the methods in it"):
        run(model, images(2))
    with pytest.raises(ts.RefusedError, match="ran without"), torch.no_grad():
        model(images(2))


@every_family
def test_a_hook_that_replaces_what_a_block_hands_on(family: str, name: str) -> None:
    model = ts.apply(build(family, name), SPEC)
    handle = blocks_of(model)[1].register_forward_hook(lambda block, args, out: out * 1.0)
    with pytest.raises(ts.RefusedError, match=r"block 1 ran without .* taps=\[0\]|hook put a tensor"):
        run(model, images(2))
    handle.remove()
    assert run(model, images(2)).isfinite().all()
    # In front of apply it is found by the probe.
    dense = build(family, name)
    blocks_of(dense)[1].register_forward_hook(lambda block, args, out: out * 1.0)
    with pytest.raises(ts.RefusedError, match="a hook has put in the place of its output"):
        ts.apply(dense, SPEC)


@every_family
def test_a_list_of_blocks_that_was_changed(family: str, name: str) -> None:
    model = ts.apply(build(family, name), SPEC)
    blocks = blocks_of(model)
    del blocks[1]
    with pytest.raises(ts.RefusedError, match="block 1 is the one that was block 2"):
        run(model, images(2))
    # Fewer at the end are a shorter model, whose tokens are given back all the same.
    short = ts.apply(build(family, name), SPEC)
    wanted = build(family, name)
    for one in (short, wanted):
        del blocks_of(one)[DEPTH - 1]
    assert run(short, images(2)).shape == run(wanted, images(2)).shape


def fresh(family: str, name: str) -> Any:
    return blocks_of(build(family, name))[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda blocks, block: [wrapped_dense(one) for one in blocks], "block 0 ran without the methods"),
        (lambda blocks, block: blocks.__setitem__(DEPTH - 1, block), f"block {DEPTH - 1} has no methods"),
        (lambda blocks, block: blocks.insert(1, block), f"there are {DEPTH + 1} blocks"),
        (lambda blocks, block: blocks.append(block), f"there are {DEPTH + 1} blocks"),
        (lambda blocks, block: ts.remove(blocks), "block 0 has no methods"),
        (lambda blocks, block: ts.remove(blocks[DEPTH - 1]), f"block {DEPTH - 1} has no methods"),
    ],
)
@every_family
def test_blocks_that_were_changed_all_or_at_an_end(
    family: str, name: str, change: Callable[[Any, Any], Any], said: str
) -> None:
    model = ts.apply(build(family, name), SPEC)
    change(blocks_of(model), fresh(family, name))
    with pytest.raises(ts.RefusedError, match=said):
        run(model, images(2))


def wrapped_dense(block: Any) -> None:
    kind = next(cls for cls in type(block).__mro__ if not issubclass(cls, TakenOver))
    block.forward = types.MethodType(kind.forward, block)


@every_family
def test_a_list_that_was_changed_before_the_first_site(family: str, name: str) -> None:
    model = ts.apply(build(family, name), ts.TopK(sites=(2,)))
    del blocks_of(model)[0]
    with pytest.raises(ts.RefusedError, match="block 1 is the one that was block 2"):
        run(model, images(2))


@every_family
def test_a_forward_that_was_patched_on_the_class(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(blocks_of(build(family, name))[0])
    model, own = ts.apply(build(family, name), SPEC), kind.forward
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, x, *args, **kwargs: own(self, x, *args, **kwargs) * 2)
        with pytest.raises(ts.RefusedError, match="forward of the class of block 0 was replaced"):
            run(model, images(2))
    assert run(model, images(2)).isfinite().all()


def test_two_models_in_one_are_refused_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = build(*FIRST[0]), build(*FIRST[1])

    model = Two()
    with pytest.raises(ts.RefusedError, match="more than one ViT, 'first' and 'second': apply methods to each"):
        ts.apply(model, SPEC)
    assert not ts.is_applied(model)
    ts.apply(model.second, SPEC)
    assert not ts.is_applied(model.first) and ts.is_applied(model.second)


def test_methods_that_learn_are_built_before_anything_changes() -> None:
    model = build(*FIRST[0])
    with torch.device("meta"):
        ts.apply(model, "tome:r=2+tokenlearner")
    assert run(model, images(2)).isfinite().all()


@pytest.mark.parametrize("method", ["forward_features", "forward_intermediates"])
def test_a_method_of_the_owner_that_somebody_kept(method: str) -> None:
    model = small()
    x = torch.randn(2, 3, 64, 64)
    dense = getattr(model, method)(x)
    kept = getattr(ts.apply(model, SPEC), method)
    ts.remove(model)
    torch.testing.assert_close(kept(x), dense)


@pytest.mark.parametrize(
    "call", [ts.remove, ts.is_applied, ts.applied, lambda m: ts.apply(m, SPEC), lambda m: ts.trace(m, None)]
)
def test_what_is_no_model(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ts.TokensieveError, match=r"expected a model, a torch\.nn\.Module, got None"):
        call(None)


def test_a_probe_without_an_image() -> None:
    with pytest.raises(ts.TokensieveError, match="holds no image"):
        ts.apply(build(*FIRST[0]), SPEC, probe=images(0))


@pytest.mark.parametrize("where", ["model", pytest.param("blocks", marks=pytest.mark.slow)])
@ORDERS
def test_a_forward_that_was_compiled_and_set_on_the_model(where: str, first: str) -> None:
    torch.compiler.reset()
    model, x = small(), torch.randn(2, 3, 64, 64)
    reduced = run(ts.apply(small(), SPEC), x)
    if first == "apply":
        ts.apply(model, SPEC)
    for part in [model] if where == "model" else model.blocks:
        part.forward = torch.compile(part.forward, backend="eager")
    if first == "others" and where == "blocks":
        with pytest.raises(ts.RefusedError, match="was replaced on the module itself"):
            ts.apply(model, SPEC)
        return
    if first == "others":
        ts.apply(model, SPEC)
    torch.testing.assert_close(run(model, x), reduced)
    assert len(ts.trace(model, x).events) == 4
    torch.compiler.reset()


def test_the_fill_of_a_dinov2_whose_classifier_is_wrapped() -> None:
    pytest.importorskip("transformers")
    plain, wrapping = build("hf-dinov2", "registers"), build("hf-dinov2", "registers")
    inner: Any = wrapping
    inner.model.classifier = nn.Sequential(nn.Dropout(0.0), inner.model.classifier)
    for model in (plain, wrapping):
        ts.apply(model, "topk:keep=0.5:sites=[1]")
    assert torch.equal(run(plain, images(2)), run(wrapping, images(2)))


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_the_grid_control_follows_another_grid(size: tuple[int, int]) -> None:
    model, other = ts.apply(small(), "grid:sites=[1]"), small()
    for one in (model, other):
        one.set_input_size(img_size=size)
    ts.apply(other, "grid:sites=[1]")
    x = torch.randn(2, 3, *size)
    assert torch.equal(run(model, x), run(other, x))


def test_one_block_at_several_depths_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=3)
    model.blocks[1] = model.blocks[0]
    with pytest.raises(ts.RefusedError, match="one block at several depths"):
        ts.apply(model, SPEC)
    assert not ts.is_applied(model)


# Compilers


def compiled_blocks(model: nn.Module) -> None:
    for block in blocks_of(model):
        block.compile(backend="eager")


@pytest.mark.parametrize("ran", [pytest.param(False, marks=pytest.mark.slow), True], ids=["fresh", "ran"])
@pytest.mark.parametrize("how", ["compile", pytest.param("blocks", marks=pytest.mark.slow), "wrapper"])
@ORDERS
def test_compiled_before_or_afterwards(first: str, how: str, ran: bool) -> None:
    torch.compiler.reset()
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3).eval()
    x = torch.randn(2, 3, 64, 64)
    dense, reduced = run(model, x), run(ts.apply(model, SPEC), x)
    if first == "others":
        ts.remove(model)
    if how == "compile":
        model.compile(backend="eager")
    elif how == "blocks":
        compiled_blocks(model)
    whole: Any = torch.compile(model, backend="eager") if how == "wrapper" else model
    if ran:
        run(whole, x)
    if first == "others":
        ts.apply(whole, SPEC)
    torch.testing.assert_close(run(whole, x), reduced)
    assert len(ts.trace(whole, x).events) == 2  # what runs compiled is recorded as it was written
    ts.remove(whole)
    torch.testing.assert_close(run(whole, x), dense)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=() if config in ("algm", "tome") else pytest.mark.slow) for config in DEFAULTS],
)
def test_torch_jit_trace_gives_the_same_on_other_images_or_is_refused(config: str) -> None:
    model = ts.apply(build(*FIRST[0]), CONFIGS[config])
    if DEFAULTS[config][0].ragged:
        with pytest.raises(ts.TokensieveError, match=r"torch\.jit\.trace would write down"), torch.no_grad():
            torch.jit.trace(model, images(2), check_trace=False)
        return
    with torch.no_grad():
        traced = torch.jit.trace(model, images(2), check_trace=False)
        torch.testing.assert_close(traced(images(8)[4:6]), model(images(8)[4:6]), rtol=1e-5, atol=1e-5)


def test_a_model_inside_of_wrappers_that_hand_on_its_attributes() -> None:
    class HandsOn(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    model = build(*FIRST[0])
    both_orders("others", HandsOn(model), lambda wrapper: None)
    assert family_of(HandsOn(model)).owner is model


# Gradients


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(images(2))
    (out if isinstance(out, Tensor) else out[0]).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@contextmanager
def reentrant(model: nn.Module) -> Iterator[None]:
    located = family_of(model)
    if hasattr(located.owner, "set_grad_checkpointing"):
        located.owner.set_grad_checkpointing()
        timm.layers.set_reentrant_ckpt(True)
        try:
            yield
        finally:
            timm.layers.set_reentrant_ckpt(False)
    else:
        inner: Any = model
        inner.model.gradient_checkpointing_enable({"use_reentrant": True})
        yield


@every_family
def test_reentrant_checkpoints_are_refused_before_gradients_are_lost(family: str, name: str) -> None:
    dense = build(family, name).train()
    with reentrant(dense):
        try:
            gradients(dense)
        except ValueError:
            pytest.skip("torch itself has no reentrant checkpoints of blocks with keyword arguments")
    model = ts.apply(build(family, name), SPEC).train()
    with reentrant(model):
        with pytest.raises(ts.RefusedError, match="use_reentrant=False"):
            gradients(model)
        with torch.no_grad():
            model(images(2))  # no gradient is lost where none is wanted


# The fused kernel


@every_case(DEFAULTS, FIRST_OF_TIMM, FIRST[:1])
def test_without_the_fused_kernel_an_answer_stays_right_or_is_refused(family: str, name: str, config: str) -> None:
    """Images do not look at one another, and no bias is lost."""
    for when in ("before", "afterwards"):
        model = build(family, name)
        if when == "before":
            switch_off(model)
        try:
            torch.manual_seed(0)
            ts.apply(model, CONFIGS[config])
            torch.manual_seed(0)
            with_kernel = run(ts.apply(build(family, name), CONFIGS[config]), images(3))
            if when == "afterwards":
                switch_off(model)
            answer = run(model, images(3))
        except ts.RefusedError as error:
            assert "set_fused_attn(True)" in str(error)
            continue
        torch.testing.assert_close(answer, with_kernel, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(model, images(3)[1:2]), answer[1:2], rtol=1e-4, atol=1e-4)


def switch_off(model: nn.Module) -> None:
    found = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module in found:
        module.fused_attn = False  # type: ignore[assignment]
    assert found


def test_transformers_own_attention_is_refused() -> None:
    pytest.importorskip("transformers")
    model: Any = build("hf-vit", "vit")
    model.model.set_attn_implementation("eager")
    with pytest.raises(ts.RefusedError, match=r"set_attn_implementation\('sdpa'\)"):
        ts.apply(model, "algm")
    model.model.set_attn_implementation("sdpa")
    ts.apply(model, "tome:r=4")
    model.model.set_attn_implementation("eager")
    with pytest.raises(ts.RefusedError, match=r"set_attn_implementation\('sdpa'\)"):
        run(model, images(2))


# What a user changes between apply and the run


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", **(sizes | {"num_classes": 10} | options)).eval()


SHARES = [
    name
    for name, (method,) in DEFAULTS.items()
    if method.knob == "keep" and not method.ragged and not kinds_of(name) & {"learned"} and not method.gridded
]


def test_levels_are_of_the_image_that_runs() -> None:
    model = ts.apply(small(dynamic_img_size=True), ts.ATS(sites=(2,)))
    for side in (32, 96):
        patches = (side // 8) ** 2
        left = ts.trace(model, torch.randn(1, 3, side, side)).stages[-1].processed - 1
        assert 0.3 * patches < left < patches


@pytest.mark.parametrize("config", SHARES)
def test_shares_are_of_the_image_that_runs(config: str) -> None:
    """A model made for one size gives at another what a model made for that size gives."""
    anywhere = ts.apply(small(dynamic_img_size=True), DEFAULTS[config])
    for side in (32, 96):
        built = small(img_size=side)
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
        counts = [stage.processed for stage in ts.trace(ts.apply(built, DEFAULTS[config]), x).stages]
        assert [stage.processed for stage in ts.trace(anywhere, x).stages] == counts


def test_another_input_size_after_apply() -> None:
    model = ts.apply(small(), "algm")
    model.set_input_size(img_size=(96, 48))
    other = small(img_size=(96, 48))
    ts.remove(other).load_state_dict({k: v for k, v in ts.remove(model).state_dict().items()})
    ts.apply(other, "algm")
    model = ts.apply(small(), "algm")
    model.set_input_size(img_size=(96, 48))
    x = torch.randn(2, 3, 96, 48)
    torch.testing.assert_close(run(model, x), run(other, x))


@pytest.mark.parametrize("how", ["reset_classifier", "attribute"])
def test_another_pooling_after_apply(how: str) -> None:
    """What fills the places of dropped tokens is what the head that reads them needs."""
    model, wanted = ts.apply(small(), "topk:keep=0.5:sites=[1]"), small(global_pool="avg", fc_norm=False)
    if how == "reset_classifier":
        model.reset_classifier(10, "avg")
        ts.remove(wanted).load_state_dict(dict(ts.remove(small(global_pool="avg", fc_norm=False)).state_dict()))
        model.head.load_state_dict(wanted.head.state_dict())
    else:
        model.global_pool = "avg"
    ts.apply(wanted, "topk:keep=0.5:sites=[1]")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(run(model, x), run(wanted, x))
    chosen = ts.apply(small(), "topk:keep=0.5:sites=[1]", fill="last")
    before = run(chosen, x)
    chosen.global_pool = "avg"
    assert not torch.equal(run(chosen, x), before)
    assert not torch.equal(run(chosen, x), run(wanted, x))  # a fill that was asked for stays


# Inputs that the dense model takes


@every_case(CONFIGS, FIRST, FIRST[:1])
def test_an_empty_batch(family: str, name: str, config: str) -> None:
    try:
        run(build(family, name), images(0))
    except RuntimeError:
        pytest.skip("the dense model takes no empty batch")
    model = ts.apply(build(family, name), CONFIGS[config])
    assert run(model, images(0)).shape == (0, *dense_answer(family, name).shape[1:])


@every_case(CONFIGS, FIRST, FIRST[:1])
def test_an_image_that_is_not_finite_harms_itself_only(family: str, name: str, config: str) -> None:
    model, x = ts.apply(build(family, name), CONFIGS[config]), images(3)
    wanted = run(model, x)
    for wrong in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1] = wrong
        answer = run(model, broken)
        torch.testing.assert_close(answer[[0, 2]], wanted[[0, 2]], rtol=1e-5, atol=1e-5)
        assert not answer[1].isfinite().all()


def test_a_probe_under_another_default_device() -> None:
    model = build(*FIRST[0])
    with torch.device("meta"):
        ts.apply(model, SPEC)
    assert run(model, images(2)).isfinite().all()
