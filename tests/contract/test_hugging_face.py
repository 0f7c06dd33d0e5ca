"""Models of transformers as their users call them: outputs with hidden states, backbones, depth, checkpoints, saving.

What every family promises is in the other files; these are the models around the encoders.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tokensieve.engine.block import Site
from tokensieve.engine.grid import running_grid
from tokensieve.families._locate import list_families
from tokensieve.tokens.state import Tokens

transformers = pytest.importorskip("transformers")

ENCODER: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 64, "patch_size": 16,
    "num_labels": 10,
}  # fmt: skip
NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def dinov2(**changes: Any) -> Any:
    return transformers.Dinov2Config(**ENCODER, **{"out_features": STAGES, **changes})


def registers(**changes: Any) -> Any:
    return transformers.Dinov2WithRegistersConfig(**ENCODER, **changes)


def vit(kind: str = "ViT") -> Any:
    return getattr(transformers, f"{kind}Config")(**ENCODER, intermediate_size=96)


def dpt() -> Any:
    return transformers.DPTConfig(
        **ENCODER, **NECK, intermediate_size=96, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "depth-anything": lambda: transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(
            backbone_config=dinov2(reshape_hidden_states=False),
            patch_size=16,
            reassemble_hidden_size=48,
            head_hidden_size=8,
            **NECK,
        )
    ),
    "dpt": lambda: transformers.DPTForDepthEstimation(dpt()),
    "dpt-segmentation": lambda: transformers.DPTForSemanticSegmentation(dpt()),
    "dpt-on-dinov2": lambda: transformers.DPTForDepthEstimation(
        transformers.DPTConfig(
            backbone_config=dinov2(reshape_hidden_states=False), hidden_size=48, is_hybrid=False, **NECK
        )
    ),
    "dinov2-backbone": lambda: transformers.Dinov2Backbone(dinov2(out_features=["stage2", "stage4"])),
    "registers-backbone": lambda: transformers.Dinov2WithRegistersBackbone(registers(out_features=["stage3"])),
    "registers": lambda: transformers.Dinov2WithRegistersModel(registers()),
    "vit": lambda: transformers.ViTModel(vit()),
    "vit-classifier": lambda: transformers.ViTForImageClassification(vit()),
    "vit-msn": lambda: transformers.ViTMSNModel(vit("ViTMSN")),
    "i-jepa": lambda: transformers.IJepaForImageClassification(vit("IJepa")),
}
REDUCED = ("tome:r=3", "bat:keep=0.5:sites=[1]", "tosa:keep=0.5:score=own", "evit:keep=0.6:sites=[1,2]")
every_model = pytest.mark.parametrize("name", MODELS)
every_method = pytest.mark.parametrize("spec", REDUCED)


def build(name: str) -> Any:
    return liven(MODELS[name]()).eval()


def images(count: int = 2, rows: int = 4, columns: int = 4) -> Tensor:
    return torch.randn(count, 3, 16 * rows, 16 * columns, generator=torch.Generator().manual_seed(3))


def tensors(output: Any) -> list[Tensor]:
    """Every tensor of an output, in order; nothing else may be in it."""
    if output is None:
        return []
    if isinstance(output, Tensor):
        return [output]
    assert not isinstance(output, Tokens)
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors(part)]


def run(model: Any, x: Tensor, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(x, **options))


def equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def hook_counts(model: nn.Module) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@every_model
def test_removing_nothing_is_bit_equal(name: str) -> None:
    model, x = build(name), images()
    dense, whole = run(model, x), run(model, x, output_hidden_states=True)
    assert len(whole) == len(dense) + 5
    ts.apply(model, "tome:r=0+bat:keep=1.0")
    assert equal(run(model, x), dense)
    assert equal(run(model, x, output_hidden_states=True), whole)


@every_method
@every_model
def test_reduced_outputs_have_the_dense_shapes_and_remove_is_exact(name: str, spec: str) -> None:
    model, x = build(name), images()
    kinds, keys = [type(module) for module in model.modules()], list(model.state_dict())
    dense = run(model, x, output_hidden_states=True)
    hooks = hook_counts(model)
    ts.apply(model, spec)
    assert list(model.state_dict()) == keys
    found = run(model, x, output_hidden_states=True)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in dense]
    assert all(tensor.isfinite().all() for tensor in found) and not torch.equal(found[0], dense[0])
    assert equal(run(model, x, output_hidden_states=True, return_dict=False), found)
    ts.remove(model)
    assert [type(module) for module in model.modules()] == kinds
    assert hook_counts(model) == hooks
    assert equal(run(model, x, output_hidden_states=True), dense)


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[Tokens]:
    """The states that were restored."""
    states: list[Tokens] = []
    original = Tokens.restore

    def counting(self: Tokens, *args: Any, **kwargs: Any) -> Tensor:
        states.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Tokens, "restore", counting)
    return states


READ = {"depth-anything": 4, "dpt": 4, "dpt-on-dinov2": 4, "dinov2-backbone": 2, "registers-backbone": 2, "vit": 1}


@pytest.mark.parametrize("name", READ)
def test_only_layers_that_somebody_reads_are_restored(name: str, restored: list[Tokens]) -> None:
    """The last one is always; those that come before it only where a feature map or a caller reads them."""
    model = ts.apply(build(name), "tome:r=3:sites=[0]")
    run(model, images())
    assert len(restored) == READ[name]
    assert len({state.x.shape[1] for state in restored}) == 1  # compact until then
    restored.clear()
    run(model, images(), output_hidden_states=True)
    assert len(restored) == 4


def test_a_backbone_may_read_other_layers_later(restored: list[Tokens]) -> None:
    model, x = build("dinov2-backbone"), images()
    ts.apply(model, "tome:r=3:sites=[0]")
    model.out_features = ["stage1"]
    (first,) = run(model, x)
    assert first.shape == (2, 48, 4, 4) and len(restored) == 2
    assert run(model, x, output_hidden_states=[2])[-1].shape == (2, 17, 48)


@pytest.mark.parametrize("name", ["depth-anything", "dpt", "registers-backbone", "vit-classifier"])
@every_method
def test_an_answer_does_not_depend_on_the_batch(name: str, spec: str) -> None:
    model, x = ts.apply(build(name).double(), spec), images(3).double()
    together = run(model, x)[0]
    alone = torch.cat([run(model, image)[0] for image in x.split(1)])
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["depth-anything", "dpt", "vit-classifier"])
def test_checkpointed_gradients_equal_plain_ones(name: str) -> None:
    model, x = ts.apply(build(name).double(), "bat:keep=0.6:sites=[1]+tosa:keep=0.5:score=own").train(), images()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        tensors(model(x.double()))[0].square().mean().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable()
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys() and len(plain) > 30
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient)


@pytest.mark.parametrize("spec", ["tome:r=3", "tosa:keep=0.5"])
@pytest.mark.parametrize("name", ["vit", "depth-anything"])
def test_save_pretrained_while_applied_writes_a_model(name: str, spec: str, tmp_path: Path) -> None:
    model, x = build(name), images()
    dense, kind = run(model, x), type(model)
    ts.apply(model, spec).save_pretrained(tmp_path)
    again, found = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert again.config.architectures == [kind.__name__]
    assert not found["missing_keys"] and not found["mismatched_keys"]
    assert all(".tokensieve." in key for key in found["unexpected_keys"])  # a method's learned parts
    assert bool(found["unexpected_keys"]) == spec.startswith("tosa")
    assert equal(run(again.eval(), x), dense)


@every_method
def test_images_of_other_shapes(spec: str) -> None:
    x = images(2, 3, 6)
    for name, options in (
        ("vit-classifier", {"interpolate_pos_encoding": True}),
        ("depth-anything", {}),
        ("dpt-on-dinov2", {}),
        ("registers-backbone", {}),
    ):
        model = build(name)
        dense = run(model, x, **options)
        found = run(ts.apply(model, spec), x, **options)
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in dense]
        assert all(tensor.isfinite().all() for tensor in found)


GRIDDED = ("expedite:keep=0.5:sites=[1]", "ailurus:keep=0.5:sites=[1]", "cubist:keep=0.5:sites=[1]")
RESIZED = {
    "vit": {"interpolate_pos_encoding": True},
    "depth-anything": {},
    "dpt": {},
    "dpt-on-dinov2": {},
    "registers-backbone": {},
}


@pytest.mark.parametrize("spec", GRIDDED)
@pytest.mark.parametrize("name", RESIZED)
def test_the_grid_of_patches_follows_the_images(name: str, spec: str) -> None:
    """2 × 8 patches are as many as the model's own 4 × 4; pixels beyond the last whole patch do not count."""
    grids: list[Any] = []
    model = ts.apply(build(name), spec)
    site = next(module for module in model.modules() if isinstance(module, Site) and module.block == 3)
    site.register_forward_pre_hook(lambda site, args: grids.append(args[0].grid))
    # DPT's neck takes squares alone where the ViT is its own.
    shapes = [(3, 3), (5, 5), (4, 4), (5, 5)] if name == "dpt" else [(2, 8), (3, 5), (4, 4), (3, 5)]
    for rows, columns in shapes:
        x = images(1, rows, columns)
        x = torch.nn.functional.pad(x, (0, 7, 0, 7)) if rows % 2 else x
        with torch.no_grad():
            outputs = (model(pixel_values=x, **RESIZED[name]), model(x, **RESIZED[name]))
        assert all(tensor.isfinite().all() for output in outputs for tensor in tensors(output))
    assert grids == [grid for grid in shapes for _ in range(2)]
    with pytest.raises((TypeError, ValueError, RuntimeError)), torch.no_grad():
        model(images(1, 3, 5)[:, :1], **RESIZED[name])
    assert running_grid() is None


def test_a_model_whose_methods_need_no_grid_is_one_graph_at_any_size() -> None:
    torch.compiler.reset()
    model, x = ts.apply(build("depth-anything"), "tome:r=3"), images(1, 3, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(run(compiled, x), run(model, x))
    torch.compiler.reset()


def test_a_grid_of_one_row() -> None:
    x, model = images(1, 1, 6), build("depth-anything")
    for spec in GRIDDED:
        assert run(ts.apply(model, spec), x)[0].shape == (1, 16, 96)
        ts.remove(model)


@pytest.mark.parametrize("name", ["vit", "depth-anything", "dpt"])
def test_the_fused_kernel_is_kept(name: str) -> None:
    lengths: list[int] = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                lengths.append(args[1].shape[-2])
            return func(*args, **(kwargs or {}))

    model = ts.apply(build(name), "bat:keep=0.5:sites=[1]")
    with Count():
        run(model, images())
    assert lengths == [17, 17, 9, 9]


def test_without_the_fused_kernel_methods_that_read_attention_are_refused() -> None:
    model = build("vit")
    model.set_attn_implementation("eager")
    with pytest.raises(ts.RefusedError, match=r"set_attn_implementation\('sdpa'\)"):
        ts.apply(model, "tome:r=3")
    assert not ts.is_applied(model)


def test_an_attention_mask_is_refused() -> None:
    model = ts.apply(build("vit"), "tome:r=3")
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 3] = 0
    x = images()
    for call in (lambda: model(x, attention_mask=mask), lambda: model(x, None, None, mask)):
        with pytest.raises(ts.RefusedError, match="attention mask"):
            call()
    assert len(run(ts.remove(model), x, attention_mask=mask)) == 2


def test_a_block_of_another_version_is_refused() -> None:
    model = build("vit")
    del model.layers[0].layernorm_after
    with pytest.raises(ts.RefusedError, match=r"ViTLayer of transformers \S+ has no layernorm_after"):
        ts.apply(model, "tome:r=3")


def test_other_models_of_transformers_are_refused_with_their_blocks() -> None:
    config = transformers.SegformerConfig(num_encoder_blocks=1, hidden_sizes=[16], depths=[1])
    with pytest.raises(ts.RefusedError, match=r"its blocks are .*; tokensieve families lists the \d+ that are"):
        ts.apply(transformers.SegformerModel(config), "tome:r=3")


NOT_IMPORTED = """
import sys, timm, tokensieve as ts
ts.apply(timm.create_model("test_vit"), "tome:r=2")
assert "hf-vit" in ts.list_families()
assert "transformers" not in sys.modules
"""


def test_nothing_imports_transformers_for_a_model_of_timm() -> None:
    done = subprocess.run([sys.executable, "-c", NOT_IMPORTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else original(name, *a)
    )
    yield


@pytest.mark.usefixtures("not_installed")
def test_families_say_what_they_lack() -> None:
    lacking = {name: family.lacking() for name, family in list_families().items()}
    ours = {name for name in lacking if name.startswith("hf-")}
    assert {name for name, package in lacking.items() if package == "transformers"} == ours and len(ours) > 10
