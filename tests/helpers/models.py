"""The small models and the methods that the contract tests run on, found from the registry.

A registered family without a line in ``FACTORIES`` fails ``test_cases.py``; a registered method needs no line at all.
Which method is tested on which model, and how soon, says ``cases.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.engine.composition import REFERENCE
from tokensieve.families._layout import Layout
from tokensieve.families._locate import family_of, list_families
from tokensieve.methods import _registry as registry
from tokensieve.methods._method import Method
from tokensieve.models.transformers import HuggingFaceModel

SIZE = (64, 80)  # 4 × 5 patches of 16: not square, so that rows and columns cannot be mixed up
DEPTH = 4
PATCHES = 20

Factory = Callable[..., nn.Module]


def small(name: str, **changes: Any) -> Factory:
    """A timm model shrunk to DEPTH blocks of 48 channels and 3 heads."""
    arguments: dict[str, Any] = {"img_size": SIZE, "patch_size": 16, "depth": DEPTH, "embed_dim": 48, "num_heads": 3}
    return partial(timm.create_model, name, **{**arguments, "num_classes": 10, **changes})


def transformer(name: str, config: str, *, image_size: Any = 64, **changes: Any) -> Factory:
    """A model of transformers as small as those of timm; one built for 64 pixels resizes its position embeddings."""

    def make(depth: int = DEPTH) -> nn.Module:
        import transformers

        arguments: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": depth, "num_attention_heads": 3}
        arguments |= {"patch_size": 16, "image_size": image_size, "num_labels": 10, **changes}
        model = getattr(transformers, name)(getattr(transformers, config)(**arguments))
        return HuggingFaceModel(model, img_size=SIZE)

    return make


# Family name to small models; the first of a family stands for it where running every one would take too long.
FACTORIES: dict[str, dict[str, Factory]] = {
    "timm-vit": {
        "dinov2-reg4": small("vit_small_patch14_reg4_dinov2", init_values=0.1),
        "plain": small("vit_tiny_patch16_224"),
        "distilled": small("deit_tiny_distilled_patch16_224"),
        "deit3": small("deit3_small_patch16_224"),
        "qk-norm": small("vit_tiny_patch16_224", qk_norm=True),
        "clip": small("vit_base_patch16_clip_224"),
        "siglip-map": small("vit_base_patch16_siglip_224"),
        "siglip-gap": small("vit_base_patch16_siglip_gap_224"),
        "registers-gap": small("vit_wee_patch16_reg1_gap_256"),
        "res-post": small("vit_tiny_patch16_224", block_fn=ResPostBlock, init_values=0.1),
        "parallel-things": small("vit_tiny_patch16_224", block_fn=ParallelThingsBlock, init_values=0.1),
        "parallel-scaling": small("vit_tiny_patch16_224", block_fn=ParallelScalingBlock, qk_norm=True),
    },
    "timm-eva": {
        "dinov3": small("vit_small_patch16_dinov3"),
        "eva02": small("eva02_tiny_patch14_224"),
        "eva02-gap": small("eva02_tiny_patch14_224", global_pool="avg", class_token=False),
        "rope-mixed": small("vit_small_patch16_rope_mixed_224"),
        "rope-axial": small("vit_small_patch16_rope_224"),
        "post-norm": small("eva02_tiny_patch14_224", use_post_norm=True),
        "pe-core": small("vit_pe_core_tiny_patch16_384"),
        "grouped-queries": small("vit_base_patch16_sapiens2", num_kv_heads=(3, 1, 1, 3)),
    },
    "hf-vit": {
        "vit": transformer("ViTForImageClassification", "ViTConfig", image_size=SIZE, intermediate_size=96),
        "deit-distilled": transformer(
            "DeiTForImageClassificationWithTeacher", "DeiTConfig", image_size=SIZE, intermediate_size=96
        ),
    },
    "hf-dinov2": {
        "registers": transformer(
            "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", use_swiglu_ffn=True
        ),
        "model": transformer("Dinov2Model", "Dinov2Config", drop_path_rate=0.1),
    },
    "hf-dpt": {"dpt": transformer("DPTModel", "DPTConfig", intermediate_size=96, is_hybrid=False)},
}


NO_WEIGHTS = ("token", "tokens", "pos_embed", "position_embeddings", "latent")


def liven(model: nn.Module) -> nn.Module:
    """Give every parameter a weight that matters: fresh ones leave norms, scales and special tokens without effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "rope" in name:
                continue
            if parameter.dim() >= 2 and not name.endswith(NO_WEIGHTS):
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
            elif name.endswith(("weight", "gamma", "gamma_1", "gamma_2")):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model


# Those whose package is installed.
FACTORIES = {family: models for family, models in FACTORIES.items() if list_families()[family].lacking() is None}


@cache
def _built(family: str, name: str, features_only: bool) -> nn.Module:
    return liven(FACTORIES[family][name](**({"features_only": True} if features_only else {}))).eval()


def build(family: str, name: str, *, features_only: bool = False) -> nn.Module:
    """A fresh copy of a small model, dense, in eval mode, float32; the same weights every time."""
    return copy.deepcopy(_built(family, name, features_only))


@cache
def shared(family: str, name: str, config: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small model in eval mode, dense or with CONFIGS[config] applied, made once: for tests that only read it."""
    model = build(family, name).to(dtype)
    return model if config is None else ts.apply(model, CONFIGS[config])


def reduced(family: str, name: str, config: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of such a reduced model, for tests that change it."""
    return copy.deepcopy(shared(family, name, config, dtype))


@cache
def dense_answer(family: str, name: str, count: int = 2) -> Tensor:
    """What the dense model answers to ``images(count)``."""
    return run(shared(family, name), images(count))


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The answer of a model, without gradients."""
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def images(count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 3, 64, 80), every image another one, the same for every call."""
    drawn = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return drawn[:count].to(dtype)


def nothing(cls: type[Method]) -> Method | None:
    """The config of a method that removes nothing, or None where it has no such config."""
    if cls.knob in ("keep", "r"):
        return cls(**{cls.knob: {"keep": 1.0, "r": 0}[cls.knob]})
    return cls(sites=()) if "sites" in cls.option_types() else None


def composition(cls: type[Method]) -> tuple[Method, ...] | None:
    """The method at its defaults together with one of the other kind, or None for methods that refuse company."""
    if cls.ragged or cls.undisturbed:
        return None
    if cls.mixes and cls.undivided:
        return (cls(), ts.ToMe(r=2, sites=(DEPTH - 1,)))
    if cls.mixes:  # refuses company that lets tokens skip a block in which it mixes
        return (ts.ToMe(r=2), cls())
    if cls.undivided:  # and nothing may be away where it acts
        return (cls(), ts.ToSA(keep=0.5, score="own", sites=(DEPTH - 1,)))
    if cls().returns_at(0, REFERENCE) == "end":
        return (cls(), ts.ToSA(keep=0.5, score="own"))
    return (ts.ToMe(r=2), cls())


METHODS: tuple[str, ...] = tuple(registry.list_methods())
MODELS: tuple[tuple[str, str], ...] = tuple((family, name) for family, models in FACTORIES.items() for name in models)
FIRST: tuple[tuple[str, str], ...] = tuple((family, next(iter(models))) for family, models in FACTORIES.items())
FIRST_OF_TIMM = tuple((family, name) for family, name in FIRST if family.startswith("timm"))

# Methods whose published thresholds remove nothing of random weights, see their cards: attention is even there, above
# AS-ViT's first thresholds, and A-ViT's halting score has a first channel to reach that only its training makes. And
# IPCV lets all tokens attend in the four blocks behind its first ones, which are all that there are here.
BITING: dict[str, dict[str, Any]] = {
    "as-vit": {"start": 0.005},
    "a-vit": {"scale": 2.0, "shift": -3.0},
    "ipcv": {"attentions": 2},
}
DEFAULTS: dict[str, tuple[Method, ...]] = {
    name: (cls(**BITING.get(name, {})),) for name, cls in registry.list_methods().items()
}
COMPOSED: dict[str, tuple[Method, ...]] = {
    ts.spell(both): both for cls in registry.list_methods().values() if (both := composition(cls)) is not None
}
CONFIGS: dict[str, tuple[Method, ...]] = {**DEFAULTS, **COMPOSED}


def layout_of(model: nn.Module) -> Layout:
    """The token layout of a model, as its family says."""
    located = family_of(model)
    return located.family.layout(located.owner)


def learned_parts(methods: tuple[Method, ...], layout: Layout) -> bool:
    """Whether any of the methods brings something of its own to the state dict."""
    parts = [method.module(layout) for method in methods]
    return any(part is not None and part.state_dict() for part in parts)
