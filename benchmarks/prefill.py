"""Time to the first token of a vision-language model, beside its dense self and its oracle.

python -m benchmarks prefill [--tokens 64] [--rounds 5] [--dtype float32]

A model of LLaVA-1.5's shape with random weights: CLIP ViT-L/14 at 336 pixels, whose 576 patches go through two linear
layers, and a decoder of 24 layers with 896 channels. The prompt is one image and 32 words. What is timed is one call
with a cache and the logits of the last token. The oracle gets the first ``tokens`` features for nothing: the dense
tower runs, and the dense decoder sees a prompt with that many. Time is the median of interleaved rounds, S and S/O are
medians of ratios round by round; F is what the MACs promise. Bytes of the cache are those of its tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tokensieve as ts
from benchmarks.report import table
from tokensieve.answers.cost import cache_bytes
from tokensieve.measure import memory, speed
from tokensieve.models.load import share_weights
from tokensieve.utils.files import replacing

PATCHES, IMAGE, WORDS = 576, 31999, 32
PREFIX = ("divprune", "cdpruner", "visionzip", "prefix-random")
DECODER = ("fastv", "sparsevlm")  # these see all features in their first layers: no oracle of the prefix
COLUMNS = ("variant", "image tokens", "seconds", "S", "F", "S/O", "cache MB", "peak MB")


def options(parser: argparse.ArgumentParser) -> None:
    """How many are kept, how often it is timed."""
    parser.add_argument("--tokens", type=int, default=64, help=f"image tokens that stay, of {PATCHES}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prefill.md"))


def run(given: argparse.Namespace) -> None:
    """Write the table."""
    dense = llava(getattr(torch, given.dtype))
    numbers = sum(part.numel() for part in dense.parameters())
    found = "\n".join(table(COLUMNS, measure(dense, given.tokens, given.rounds)))
    about = (
        f"{numbers / 1e9:.2f} · 10⁹ parameters, {given.dtype}, batch 1, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {given.rounds} interleaved rounds; `python -m benchmarks prefill --tokens "
        f"{given.tokens}`. Seconds are those to the first token; decoder methods keep all image tokens in their first "
        "layers, so the oracle of the prefix is not theirs."
    )
    with replacing(given.output) as beside:
        beside.write_text(f"# Time to the first token\n\n{about}\n\n{found}\n", encoding="utf-8")
    print(found)


def llava(dtype: torch.dtype) -> nn.Module:
    """A model of LLaVA-1.5's shape with random weights, in evaluation mode."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model: nn.Module = LlavaForConditionalGeneration(config)
    return model.eval().to(dtype)


def measure(dense: Any, tokens: int, rounds: int) -> list[list[str]]:
    """A row for the dense model, its oracle, and every method at so many image tokens."""
    pixels = torch.randn(1, 3, 336, 336, dtype=next(dense.parameters()).dtype)
    specs = [f"{name}:tokens={tokens}" for name in PREFIX] + [f"{name}:{_share(name, tokens)}" for name in DECODER]
    variants: dict[str, Callable[[Tensor], Any]] = {"dense": partial(_run, dense)}
    variants["oracle"] = partial(_oracle, dense, tokens)
    for spec in specs:
        variants[spec] = partial(_run, ts.apply(share_weights(dense), spec))
    macs, caches = {}, {}
    for name, variant in variants.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            caches[name] = cache_bytes(variant(pixels).cache)
        macs[name] = counted.get_total_flops() / 2
    timed = speed.measure(variants, pixels, rounds=rounds, warmup=1, min_time=0)
    return [
        [
            name if name in ("dense", "oracle") else f"`{name}`",
            str(PATCHES if name == "dense" else tokens),
            f"{timing.median:.2f}",
            f"{timing.speedup(timed['dense']):.2f}",
            f"{macs['dense'] / macs[name]:.2f}",
            f"{timing.speedup(timed['oracle']):.2f}" if name == "oracle" or name.split(":")[0] in PREFIX else "–",
            f"{caches[name] / 2**20:.2f}",
            f"{memory.peak(variants[name], pixels) / 2**20:.0f}",
        ]
        for name, timing in timed.items()
    ]


def _share(name: str, tokens: int) -> str:
    """The options that leave so many image tokens to a decoder method, behind one layer."""
    return f"keep={tokens / PATCHES:.6f}" + (":sites=[2]:recycle=0" if name == "sparsevlm" else "")


def _prompt(images: int) -> Tensor:
    words = torch.arange(3, 3 + WORDS)
    return torch.cat([torch.ones(1, dtype=torch.int64), torch.full((images,), IMAGE), words]).unsqueeze(0)


def _run(model: Any, pixels: Tensor) -> Any:
    return model(input_ids=_prompt(PATCHES), pixel_values=pixels, use_cache=True, logits_to_keep=1)


def _oracle(dense: Any, tokens: int, pixels: Tensor) -> Any:
    """The dense model whose decoder is given the first features alone."""
    encoded = dense.get_image_features(pixels, return_dict=True)
    encoded.pooler_output = [image[:tokens] for image in encoded.pooler_output]
    return dense(input_ids=_prompt(tokens), mm_encoder_outputs={"image": encoded}, use_cache=True, logits_to_keep=1)
