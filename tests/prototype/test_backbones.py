"""The architectures of tokensieve's own: what timm expects of a model, on small ones; sizes as published on meta."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.data.transforms import data_config
from tokensieve.measure import macs
from tokensieve.prototype import backbones
from tokensieve.prototype.backbones.lemevit import DualCrossAttention, LeMeViT

SIZE = (64, 96)

# Small versions; the second is what features_only gives for images of 64 × 96: (channels, reduction) of each map.
SMALL: dict[str, dict[str, Any]] = {
    "lemevit_tiny": {"dims": (32, 32, 64, 64, 96), "depths": (1, 1, 1, 2, 1)},
    "psvit_tiny": {"img_size": SIZE, "dims": (32, 48, 64), "depths": (3, 2, 1), "heads": (2, 3, 4)},
    "imagepiece_tiny": {"img_size": SIZE, "embed_dim": 48, "depth": 4},
}
FEATURES: dict[str, list[tuple[int, int]]] = {
    "lemevit_tiny": [(32, 4), (64, 8), (64, 16), (96, 32)],
    "psvit_tiny": [(32, 16), (48, 32), (64, 64)],
    "imagepiece_tiny": [(48, 16)] * 3,
}


def create(name: str, **changes: Any) -> Any:
    return timm.create_model(name, **{**SMALL[name], "num_classes": 10, **changes})


@cache
def _built(name: str) -> nn.Module:
    """A small model with weights that matter, whose batch norms have seen images."""
    torch.manual_seed(0)
    model: nn.Module = create(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.1 if parameter.dim() > 1 else 0.3))
        model.train()(images(4))
    return model.eval()


def build(name: str) -> Any:
    return copy.deepcopy(_built(name))


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)


NAMES = pytest.mark.parametrize("name", SMALL)
FIRST_NAME = pytest.mark.parametrize(  # soon; the others slowly
    "name", [next(iter(SMALL)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(SMALL)[1:])]
)


def test_every_backbone_is_tested() -> None:
    families = {name.split("_")[0] for name in SMALL}
    modules = {path.stem for path in Path(backbones.__path__[0]).glob("*.py") if not path.stem.startswith("_")}
    assert families == modules
    for module in modules:
        assert timm.list_models(f"{module}_*")


@NAMES
def test_answers(name: str) -> None:
    model = build(name)
    config = model.pretrained_cfg
    assert config["input_size"][0] == 3 and config["classifier"] == "head"
    with torch.no_grad():
        alone = model(images(1))
        both = model(images(2))
        turned = model(images(2).flip(0))
        hidden = model.forward_features(images(2))
        assert torch.equal(model.forward_head(hidden), both)
        assert model.forward_head(hidden, pre_logits=True).shape == (2, model.num_features)
    assert both.shape == (2, 10)
    torch.testing.assert_close(both[:1], alone)
    torch.testing.assert_close(turned.flip(0), both)
    assert not torch.allclose(both[0], both[1])


@NAMES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    exact = build(name)
    with torch.no_grad():
        out = build(name).to(dtype)(images(dtype=dtype))
        reference = exact(images())
    assert out.dtype == dtype
    error = (out.double() - reference.double()).norm() / reference.norm()
    assert error < (1e-5 if dtype == torch.float64 else 0.05)


@NAMES
def test_gradients(name: str) -> None:
    """Every parameter learns, and computing the blocks again in the backward pass changes nothing."""
    gradients = []
    for again in (False, True):
        model = build(name)
        model.set_grad_checkpointing(again)
        model(images()).square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, plain in gradients[0].items():
        assert plain is not None and bool(plain.isfinite().all()) and bool(plain.abs().sum() > 0), key
        torch.testing.assert_close(gradients[1][key], plain)


@NAMES
def test_classifier(name: str) -> None:
    model = create(name).double()
    model.reset_classifier(7)
    assert model.num_classes == 7 and model.get_classifier().out_features == 7
    assert model(images(dtype=torch.float64)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(images(dtype=torch.float64)).shape == (2, model.num_features)


@NAMES
def test_parameter_groups(name: str) -> None:
    model = create(name)
    names = {key for key, _ in model.named_parameters()}
    tokens = {key for key in names if key.endswith(("token", "tokens", "pos_embed"))}
    assert tokens and tokens <= set(model.no_weight_decay())
    for coarse in (False, True):
        grouped = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(grouped) == names
        assert grouped["head.weight"] == max(grouped.values())


@NAMES
def test_features(name: str) -> None:
    model = create(name, features_only=True).eval()
    maps = model(images())
    shapes = [(2, channels, *(math.ceil(side / stride) for side in SIZE)) for channels, stride in FEATURES[name]]
    assert [tuple(one.shape) for one in maps] == shapes
    assert list(zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)) == FEATURES[name]
    early = create(name, features_only=True, out_indices=(0,)).eval()
    assert [tuple(one.shape) for one in early(images())] == shapes[:1]

    whole = build(name)
    with torch.no_grad():
        final, kept = whole.forward_intermediates(images(), indices=[0, -1], norm=True)
        torch.testing.assert_close(final, whole.forward_features(images()))
        patches = final[:, whole.num_prefix_tokens :].transpose(1, 2).reshape(kept[-1].shape)
        torch.testing.assert_close(kept[-1], patches)
        options = {"norm": True, "stop_early": True, "intermediates_only": True}
        (first,) = whole.forward_intermediates(images(), indices=[0], **options)
        torch.testing.assert_close(first, kept[0])


@FIRST_NAME
def test_compiles(name: str) -> None:
    torch._dynamo.reset()
    model = build(name)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images()), model(images()))


@FIRST_NAME
def test_exports(name: str) -> None:
    model = build(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@NAMES
def test_state_dict(name: str, tmp_path: Path) -> None:
    save_file(build(name).state_dict(), tmp_path / "model.safetensors")
    other = create(name).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.equal(other(images()), build(name)(images()))


def counted(name: str) -> tuple[int, int]:
    """(parameters, MACs of convolutions and linear layers) at 224² pixels."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    total = 0

    def count(layer: Any, args: Any, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model(torch.empty(1, 3, 224, 224, device="meta"))
    return sum(parameter.numel() for parameter in model.parameters()), total


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [("lemevit_tiny", 8.636, 1.78), ("lemevit_small", 16.400, 3.74), ("lemevit_base", 53.098, 11.06)],
)
def test_sizes_are_published_ones(name: str, parameters: float, published: float) -> None:
    """The paper's MACs count convolutions and linear layers, not the products of queries, keys and values."""
    found_parameters, found_macs = counted(name)
    assert round(found_parameters / 1e6, 3) == parameters
    assert round(found_macs / 1e9, 2) == published


def test_lemevit_answers_as_its_authors_network() -> None:
    """Recorded from models/lemevit.py of ViTAE-Transformer/LeMeViT (1b48783): stages C, D, D, S, S, head_dim 32, 16
    queries, the other options at their defaults; float64, the same weights by their places, every key matched."""
    model = LeMeViT(dims=(32, 32, 64, 64, 96), depths=(1, 1, 1, 2, 1), num_classes=10).double().eval()
    generator, weights = torch.Generator().manual_seed(1), {}
    for name, value in sorted(model.state_dict().items()):
        weights[name] = value
        if not value.dtype.is_floating_point:
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if "running_var" in name:
            weights[name] = 1 + 0.1 * noise.abs()
        elif value.dim() < 2:
            weights[name] = float(name.endswith("weight")) + 0.2 * noise
        else:
            weights[name] = noise / math.sqrt(value[0].numel())
    model.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float64)
    recorded = [4.8934089579402675, -0.6179557757508382, 4.5967110198182075, 7.380998970776884, 4.382640177597654]
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0, :5], torch.tensor(recorded).double(), rtol=0, atol=1e-6)


def products(name: str, grids: list[int]) -> int:
    """MACs of queries with keys and of maps with values, in every block of a small model."""
    total, given = 0, SMALL[name]
    for stage, (patches, depth, dim) in enumerate(zip(grids, given["depths"], given["dims"], strict=True)):
        if name == "psvit_tiny":  # every second block has no map of its own
            total += (depth + (depth + 1) // 2) * (1 + patches) ** 2 * dim
        else:
            apart = 16**2 + patches**2  # image and meta tokens attend among themselves
            pairs = [16 * patches, 2 * 16 * patches, 2 * 16 * patches, apart, apart][stage]
            total += depth * 2 * pairs * dim
    return total


@pytest.mark.parametrize(("name", "grids"), [("lemevit_tiny", [384, 384, 96, 24, 6]), ("psvit_tiny", [24, 6, 2])])
def test_macs_are_those_of_layers_and_of_attention(name: str, grids: list[int]) -> None:
    model, layers = build(name), [0]

    def add(layer: Any, args: Any, out: Tensor) -> None:
        layers[0] += out.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    report = macs.count(model, images(1))
    assert report.blocks == ()
    assert report.total == layers[0] + products(name, grids)
    assert macs.count(model, images(3)).total == report.total


@pytest.mark.parametrize("size", [96, (64, 128)])
def test_lemevit_prepares_data_for_the_size_it_is_given(size: Any) -> None:
    model = timm.create_model("lemevit_tiny", img_size=size, num_classes=10)
    height, width = (size, size) if isinstance(size, int) else size
    assert data_config(model)["input_size"] == (3, height, width)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_images_have_the_channels_that_the_stem_takes() -> None:
    assert data_config(create("imagepiece_tiny"))["input_size"] == (3, *SIZE)
    assert data_config(create("imagepiece_tiny", in_chans=1))["input_size"] == (1, *SIZE)


def test_dual_attention_follows_the_formula() -> None:
    torch.manual_seed(0)
    dim, patches, meta = 64, 40, 16
    layer = DualCrossAttention(dim).double()
    x, c = torch.randn(2, patches, dim).double(), torch.randn(2, meta, dim).double()
    queries, keys, values = layer.qkv(x).chunk(3, dim=2)
    meta_queries, meta_keys, meta_values = layer.meta_qkv(c).chunk(3, dim=2)

    def attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        heads = [
            (q[..., a : a + 32] @ k[..., a : a + 32].mT * scale).softmax(dim=2) @ v[..., a : a + 32]
            for a in range(0, dim, 32)
        ]
        return torch.cat(heads, dim=2)

    out, meta_out = layer(x, c)
    scale = dim**-0.5 * math.log(meta) / math.log(patches)
    torch.testing.assert_close(out, layer.proj(attended(queries, meta_keys, meta_values, scale)))
    torch.testing.assert_close(meta_out, layer.meta_proj(attended(meta_queries, keys, values, dim**-0.5)))


def test_imagepiece_stem() -> None:
    """Four 3×3 convolutions that halve and a 1×1: patches overlap, and the ViT behind is DeiT's."""
    model: Any = timm.create_model("imagepiece_small")
    convolutions = [layer for layer in model.patch_embed.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(3, 3)] * 4 + [(1, 1)]
    assert [layer.out_channels for layer in convolutions] == [48, 96, 192, 384, 384]
    deit = timm.create_model("deit_small_patch16_224").state_dict()
    behind = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("patch_embed")}
    assert behind == {key: value.shape for key, value in deit.items() if not key.startswith("patch_embed")}


@pytest.mark.parametrize("spec", ["imagepiece:keep=0.6:sites=[1,2]", "tome:r=4", "bat:keep=0.7", "tosa:score=class"])
def test_methods_run_behind_the_stem(spec: str) -> None:
    model = build("imagepiece_tiny")
    with torch.no_grad():
        dense = model(images())
        ts.apply(model, spec)
        reduced = model(images())
        assert reduced.shape == dense.shape and not torch.equal(reduced, dense)
        if spec.startswith("imagepiece"):
            assert [stage.processed for stage in ts.trace(model, images()).stages] == [25, 15, 9, 9]
        assert torch.equal(ts.remove(model)(images()), dense)


def test_psvit_shares_maps_and_pools() -> None:
    """Against plain loops in float64: a layer that shares computes V and the projection alone."""
    model = build("psvit_tiny").double()
    keys = set(model.state_dict())
    for stage, depth in enumerate((3, 2, 1)):
        owners = [layer for layer in range(depth) if f"stages.{stage}.blocks.{layer}.attn.qk.weight" in keys]
        assert owners == list(range(0, depth, 2))

    image, prefix = torch.randn(1, 32, 3, 5).double(), torch.randn(1, 1, 32).double()
    stage = model.stages[1]
    pooled = torch.empty(1, 32, 2, 3).double()
    for row in range(2):
        for column in range(3):
            window = image[..., max(2 * row - 1, 0) : 2 * row + 2, max(2 * column - 1, 0) : 2 * column + 2]
            pooled[..., row, column] = window.amax(dim=(2, 3))
    x = stage.widen(torch.cat([prefix, pooled.flatten(2).mT], dim=1))[0]
    maps: list[Tensor] = []
    for block in stage.blocks:
        hidden, update = block.norm1(x), torch.empty_like(x)
        for head in range(3):
            part = slice(16 * head, 16 * head + 16)
            if block.attn.qk is not None:
                queries, keyed = block.attn.qk(hidden).split(48, dim=1)
                maps.append((queries[:, part] @ keyed[:, part].T / 4).softmax(dim=1))
            update[:, part] = maps[head] @ block.attn.v(hidden)[:, part]
        x = x + block.attn.proj(update)
        x = x + block.mlp(block.norm2(x))
    out, out_prefix = stage(image, prefix)
    torch.testing.assert_close(torch.cat([out_prefix[0], out[0].flatten(1).T]), x)


@pytest.mark.parametrize(
    ("name", "reason"), [("lemevit_tiny", "its image tokens lie on a grid"), ("psvit_tiny", "it pools its tokens")]
)
def test_who_cannot_be_reduced_says_why(name: str, reason: str) -> None:
    with pytest.raises(ts.RefusedError, match=rf"ViT cannot be reduced: {reason}"):
        ts.apply(build(name), ts.ToMe(r=1))


@pytest.mark.parametrize("name", ["lemevit_tiny", "psvit_tiny"])
def test_wrong_pooling(name: str) -> None:
    with pytest.raises(ValueError, match=r"global_pool must be .* or '', got 'max'"):
        create(name, global_pool="max")
