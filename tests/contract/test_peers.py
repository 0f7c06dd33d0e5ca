"""Where other token-reduction libraries break: every place is a test. What the matrix shows for all is not repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.cases import every_case
from tests.helpers.models import DEFAULTS, PATCHES, build, images, liven, run, small
from tokensieve.families._layout import Layout
from tokensieve.methods._method import Method
from tokensieve.methods._view import Signal, View, importance_signal
from tokensieve.tokens.decision import Assignment, ragged

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
every_default = pytest.mark.parametrize("method", DEFAULTS)


def kernel_lengths(model: nn.Module, x: Tensor) -> list[int]:
    """How many keys every attention call of one run has, counted at the fused kernel and not by the library."""
    seen: list[int] = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is nn.functional.scaled_dot_product_attention:
                seen.append(args[1].shape[-2])
            return func(*args, **(kwargs or {}))

    with Count():
        run(model, x)
    return seen


# 1. LayerScale and query/key norms are dropped; other families are silently left as they are; some crash.


@pytest.mark.parametrize("name", ["dinov2-reg4", "deit3", "qk-norm", "res-post", "registers-gap", "parallel-scaling"])
@pytest.mark.parametrize("spec", ["tome:r=0", "bat:keep=1.0", "tome:r=0+tosa:keep=1.0"])
def test_layer_scale_and_norms_are_kept(name: str, spec: str) -> None:
    model, x = build("timm-vit", name), images(2)
    dense = run(model, x)
    ts.apply(model, spec)
    assert torch.equal(run(model, x), dense)


def test_the_models_of_that_test_have_what_it_is_about() -> None:
    kinds = {name: {type(m).__name__ for m in build("timm-vit", name).modules()} for name in ("dinov2-reg4", "deit3")}
    assert all("LayerScale" in found for found in kinds.values())
    assert isinstance(build("timm-vit", "qk-norm").blocks[0].attn.q_norm, nn.LayerNorm)


@every_case(DEFAULTS, [("timm-eva", name) for name in ("dinov3", "eva02", "rope-mixed", "post-norm")])
def test_rotary_models_are_really_reduced(family: str, name: str, config: str) -> None:
    model, x = build(family, name), images(2)
    dense, before = run(model, x), kernel_lengths(model, x)
    ts.apply(model, DEFAULTS[config])
    after = kernel_lengths(model, x)
    assert len(after) == len(before) and sum(after) < sum(before)
    assert not torch.allclose(run(model, x), dense)


def test_rotary_positions_follow_their_tokens() -> None:
    """Pruned tokens leave the others where they were: the same as a dense block that never saw them."""
    model, x = build("timm-eva", "eva02").double(), images(2, torch.float64)
    ts.apply(model, "grid:keep=0.5:sites=[0]")
    seen: list[Tensor] = []
    block = model.blocks[1]
    block.attn.register_forward_hook(lambda module, args, kwargs, out: seen.append(kwargs["rope"]), with_kwargs=True)
    trace = ts.trace(model, x)
    assert trace.tokens is not None
    full = model.rope.get_embed(shape=(4, 5))
    assert seen[0].shape == (2, 1, PATCHES // 2, full.shape[-1])
    assert torch.equal(seen[0][:, 0], full[trace.tokens.rep])


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "pvt": lambda: timm.create_model("pvt_v2_b0", num_classes=10),
    "cait": lambda: timm.create_model("cait_xxs24_224", img_size=64, **TINY),
    "resnet": lambda: timm.create_model("resnet18", num_classes=10),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_reduced_is_refused_and_left_as_it_was(kind: str) -> None:
    model = REFUSED[kind]().eval()
    x = torch.randn(1, 3, 64, 64)
    dense, keys = run(model, x), list(model.state_dict())
    with pytest.raises(ts.RefusedError) as refusal:
        ts.apply(model, "tome:r=2")
    message = str(refusal.value)
    assert type(model).__name__ in message and "\n" not in message
    assert "tokensieve families lists" in message
    assert not ts.is_applied(model) and list(model.state_dict()) == keys
    assert torch.equal(run(model, x), dense)


class Shifted(timm.models.vision_transformer.Block):
    """A block that does one thing more than its parts say."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, attn_mask=attn_mask, is_causal=is_causal) + 0.01


def test_a_block_that_differs_from_its_parts_is_refused() -> None:
    model = small("vit_tiny_patch16_224", block_fn=Shifted)().eval()
    dense = run(model, images(1))
    with pytest.raises(
        ts.RefusedError, match=r"block 0 \(Shifted\) differs from its two halves, .* \(and 3 more blocks\)"
    ):
        ts.apply(model, "tome:r=2")
    assert not ts.is_applied(model) and torch.equal(run(model, images(1)), dense)


# 2. Register tokens are merged with patches.


@pytest.mark.parametrize(("family", "name", "prefix"), [("timm-vit", "dinov2-reg4", 5), ("timm-eva", "dinov3", 5)])
@pytest.mark.parametrize("spec", ["tome:r=10", "bat:keep=0.2", "evit:keep=0.05", "topk:keep=0.05", "tosa:keep=0.05"])
def test_registers_are_protected(family: str, name: str, prefix: int, spec: str) -> None:
    model, x = build(family, name), images(2)
    with torch.no_grad():  # alike as they can be: the first that a merge by similarity would take
        model.reg_token.copy_(model.reg_token[:, :1].expand_as(model.reg_token))
    ts.apply(model, spec)
    trace = ts.trace(model, x)
    tokens = trace.tokens
    assert tokens is not None and tokens.prefix == prefix
    assert int(tokens.group.max()) < tokens.count  # originals stand in patch tokens only
    assert min(kernel_lengths(model, x)) < prefix + PATCHES // 2
    with torch.no_grad():
        features = model.forward_features(x)
    assert features.shape[1] == prefix + PATCHES
    for register in range(2, prefix):
        torch.testing.assert_close(features[:, register], features[:, 1])
    assert not torch.allclose(features[:, 0], features[:, 1], atol=1e-2)


# 3. Feature extraction and gradient checkpointing raise, and there is no way back. Threads, pickles, export: elsewhere.


@every_default
def test_every_way_in_works_one_after_the_other(method: str) -> None:
    model, x = build("timm-vit", "dinov2-reg4"), images(2)
    dense = run(model, x)
    ts.apply(model, method)
    answer = run(model, x)
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.forward_intermediates(x)[0], features)
        assert model.get_intermediate_layers(x, n=2)[1].shape == (2, PATCHES, 48)
    model.set_grad_checkpointing(True)
    model.train()
    model(x).sum().backward()
    model.set_grad_checkpointing(False)
    assert torch.equal(run(model.eval(), x), answer)
    assert torch.equal(run(ts.remove(model), x), dense)


# 4. Tokens are put back wrongly, with a distillation token above all.


@pytest.mark.parametrize("name", ["plain", "distilled", "dinov2-reg4", "siglip-gap"])
@pytest.mark.parametrize("metric", ["keys", "x"])
def test_merged_tokens_are_put_back_where_they_came_from(name: str, metric: str) -> None:
    """With blocks that add nothing, every patch must come back as the plain mean of its group."""
    model, x = build("timm-vit", name).double(), images(3, torch.float64)
    with torch.no_grad():
        for block in model.blocks:
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.zero_()
                last.bias.zero_()
        whole = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    model.norm = nn.Identity()
    ts.apply(model, f"tome:r=5:metric={metric}")
    trace = ts.trace(model, x)
    assert trace.tokens is not None
    prefix, group = trace.tokens.prefix, trace.tokens.group
    with torch.no_grad():
        features = model.forward_features(x)
    assert torch.equal(features[:, :prefix], whole[:, :prefix])
    patches = whole[:, prefix:]
    together = (group.unsqueeze(2) == group.unsqueeze(1)).double()
    assert int(together.sum(2).max()) > 1
    means = together @ patches / together.sum(2, keepdim=True)
    torch.testing.assert_close(features[:, prefix:], means)


# 5. The answer of an adaptive method depends on what else is in the batch.


@dataclass(frozen=True, kw_only=True)
class AboveMean(Method):
    """Keep the tokens that get more attention than the mean: another number in every image."""

    ragged = True
    name = "above-mean-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (0, 2)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({importance_signal(layout)})

    def assign(self, view: View) -> Assignment:
        score = view.importance
        there = score.isfinite()
        mean = score.masked_fill(~there, 0).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        return ragged(there & (score > 0.7 * mean))


@pytest.mark.parametrize(
    ("family", "name"),
    [("timm-vit", "plain"), ("timm-vit", "dinov2-reg4"), ("timm-vit", "siglip-gap"), ("timm-eva", "eva02"),
     ("timm-eva", "eva02-gap")],
)  # fmt: skip
def test_adaptive_answers_do_not_depend_on_the_batch(family: str, name: str) -> None:
    model = ts.apply(build(family, name).double(), AboveMean())
    textured = images(4, torch.float64)
    flat = torch.full_like(textured[:1], 0.3)
    batch = torch.cat([textured, flat])
    trace = ts.trace(model, batch)
    assert trace.tokens is not None and trace.tokens.alive is not None
    alive = trace.tokens.alive.sum(dim=1)
    assert len(set(alive.tolist())) > 1  # otherwise this test shows nothing
    alone_counts = []
    together = run(model, batch)
    for number, image in enumerate(batch.split(1)):
        torch.testing.assert_close(run(model, image)[0], together[number], rtol=1e-9, atol=1e-9)
        single = ts.trace(model, image).tokens
        assert single is not None and single.alive is None  # alone it needs no padding
        alone_counts.append(single.count)
    assert alone_counts == alive.tolist()
    torch.testing.assert_close(run(model, batch.flip(0)), together.flip(0), rtol=1e-9, atol=1e-9)


def test_adaptive_methods_do_not_compose() -> None:
    model = build("timm-vit", "plain")
    with pytest.raises(ts.TokensieveError, match="do not compose"):
        ts.apply(model, [AboveMean(), ts.ToMe(r=2)])
    assert not ts.is_applied(model)


# 6. Tokens are masked and not removed. Half precision, compiling, exporting, determinism: in the matrix.


@every_default
def test_tokens_are_removed_and_not_masked(method: str) -> None:
    model, x = build("timm-vit", "plain"), images(1)
    ts.apply(model, DEFAULTS[method])
    lengths = kernel_lengths(model, x)
    assert lengths == [stage.attended for stage in ts.trace(model, x).stages]
    assert lengths[0] == 1 + PATCHES and min(lengths) < lengths[0]


# 7. Defaults that cannot run.


@every_default
def test_defaults_run_on_a_model_of_usual_depth(method: str) -> None:
    model = liven(timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, num_classes=10)).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    dense = kernel_lengths(model, x)
    ts.apply(model, DEFAULTS[method])
    assert run(model, x).isfinite().all()
    assert sum(kernel_lengths(model, x)) < 0.95 * sum(dense)


# Weak points that wrappers bring.


def test_wrapped_models_are_refused_with_a_sentence() -> None:
    model = build("timm-vit", "plain")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = {
            "DataParallel": nn.DataParallel(model),
            "DistributedDataParallel": nn.parallel.DistributedDataParallel(model),
        }
        for name, wrapper in wrapped.items():
            with pytest.raises(ts.RefusedError, match=f"wrapped in {name}: apply methods to the plain model first"):
                ts.apply(wrapper, "tome:r=2")
            assert not ts.is_applied(model)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_without_fused_attention_is_refused() -> None:
    set_fused_attn(False)
    try:
        model = liven(small("vit_tiny_patch16_224")()).eval()
    finally:
        set_fused_attn(True)
    dense = run(model, images(1))
    with pytest.raises(ts.RefusedError, match="fused"):
        ts.apply(model, "tome:r=2")
    assert not ts.is_applied(model) and torch.equal(run(model, images(1)), dense)
    # A method that reads no signal has no need of the kernel.
    ts.apply(model, "random:keep=0.5")
    assert run(model, images(1)).isfinite().all() and not torch.equal(run(model, images(1)), dense)


def test_a_masked_call_is_refused_instead_of_misread() -> None:
    model = ts.apply(build("timm-vit", "plain"), "tome:r=2")
    mask = torch.zeros(1, 1, 1 + PATCHES, 1 + PATCHES)
    assert torch.equal(model(images(1), attn_mask=mask), model(images(1)))  # it says nothing
    mask[..., 3:, :2] = -torch.inf
    with pytest.raises(ts.RefusedError, match="attn_mask"):
        model(images(1), attn_mask=mask)
    assert run(model, images(1)).isfinite().all()


def test_methods_are_not_applied_twice() -> None:
    model = ts.apply(build("timm-vit", "plain"), "tome:r=2")
    answer = run(model, images(1))
    with pytest.raises(ts.TokensieveError, match=r"applied already \(tome:r=2\)"):
        ts.apply(model, "bat")
    assert torch.equal(run(model, images(1)), answer)
