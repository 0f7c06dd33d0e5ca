"""Towers in windows beside their dense selves and their oracles: Qwen2.5-VL's on a large image, SAM's encoder.

python -m benchmarks towers [--side 1344] [--rounds 3]

Random weights of the real width. Of Qwen2.5-VL's 32 blocks four run, of which the second attends to everything and the
others in windows of 8 × 8 patches, as three of four do in the model; of SAM ViT-B's twelve as many, 14 × 14. The oracle
runs the blocks on the first rows alone (``x[:n]``): no selection, no windows that are left ragged. Time is the median
of interleaved rounds, ratios are taken round by round; memory is of tensors alive at once, beyond the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokensieve as ts
from benchmarks.report import table
from tokensieve.measure import memory, speed
from tokensieve.measure.macs import count
from tokensieve.models.load import share_weights
from tokensieve.utils.files import replacing

METHODS = ("bat:keep=0.5:sites=[1]", "tome:r={half}:sites=[1]")
SITE, DEPTH = 1, 4
PATCH = 14  # of Qwen2.5-VL, two frames deep


def options(parser: argparse.ArgumentParser) -> None:
    """How large, how often."""
    parser.add_argument("--side", type=int, default=1344, help="of the image, in pixels, for Qwen2.5-VL's tower")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/towers.md"))


def run(given: argparse.Namespace) -> None:
    """Write the table."""
    dtype = getattr(torch, given.dtype)
    about = (
        f"{given.dtype}, batch 1, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.rounds} "
        "interleaved rounds; `python -m benchmarks towers`"
    )
    rows = []
    for tower in (qwen(given.side, dtype), sam(dtype)):
        rows += measure(tower, given.rounds)
        found = "\n".join(table(["tower", "variant", "tokens", "seconds", "S", "F", "S/F", "S/O", "peak MB"], rows))
        with replacing(given.output) as beside:  # what is measured is kept, whatever becomes of the next one
            beside.write_text(f"# Towers in windows\n\n{about}\n\n{found}\n", encoding="utf-8")
    print(found)


@dataclass
class Tower:
    """A dense tower, what it is called with, and its oracle's forward of so many tokens."""

    name: str
    model: nn.Module
    inputs: Any
    tokens: int
    oracle: Callable[[nn.Module, int], nn.Module]


def qwen(side: int, dtype: torch.dtype) -> Tower:
    """Qwen2.5-VL 7B's tower, four blocks of it."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    width: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    config = Qwen2_5_VLVisionConfig(depth=DEPTH, fullatt_block_indexes=[SITE], **width)
    torch.manual_seed(0)
    make: Any = Qwen2_5_VisionTransformerPretrainedModel._from_config
    model = make(config, attn_implementation="sdpa").eval().to(dtype)
    rows = side // PATCH
    patches = torch.randn(rows * rows, 3 * 2 * PATCH**2, dtype=dtype)
    inputs = {"hidden_states": patches, "grid_thw": torch.tensor([[1, rows, rows]])}
    return Tower(f"Qwen2.5-VL, {side} × {side}", model, inputs, rows * rows, _first_rows)


def sam(dtype: torch.dtype) -> Tower:
    """SAM ViT-B's encoder, four blocks of it, on its 1024 × 1024 pixels."""
    from transformers import SamVisionConfig, SamVisionModel

    torch.manual_seed(0)
    make: Any = SamVisionModel
    model = make(SamVisionConfig(num_hidden_layers=DEPTH, global_attn_indexes=[SITE])).eval().to(dtype)
    return Tower("SAM ViT-B, 1024 × 1024", model, torch.randn(1, 3, 1024, 1024, dtype=dtype), 4096, _first_lines)


def measure(tower: Tower, rounds: int) -> list[list[str]]:
    """A row for the dense tower and for each method."""
    dense = tower.model
    variants: dict[str, Callable[[Tensor], Any]] = {"dense": _call(dense, tower.inputs)}
    left = tower.tokens // 2
    whole = count(dense, tower.inputs).total
    promised = {}
    for spec in (method.format(half=left) for method in METHODS):
        reduced = ts.apply(share_weights(dense), spec)
        variants[spec] = _call(reduced, tower.inputs)
        promised[spec] = whole / count(reduced, tower.inputs).total
    variants["oracle"] = _call(tower.oracle(share_weights(dense), left), tower.inputs)
    one = torch.empty(1)  # image, which every variant has already
    timed = speed.measure(variants, one, rounds=rounds, warmup=1, min_time=0)
    rows = []
    for name, timing in timed.items():
        gain, factor = timing.speedup(timed["dense"]), promised.get(name)
        figures = [timing.median, gain]
        ratios = ["–", "–", "–"] if factor is None else [factor, gain / factor, timing.speedup(timed["oracle"])]
        tokens = tower.tokens if name == "dense" else left
        shown = [value if isinstance(value, str) else f"{value:.2f}" for value in (*figures, *ratios)]
        rows.append([tower.name, f"`{name}`", str(tokens), *shown, f"{memory.peak(variants[name], one) / 2**20:.0f}"])
    return rows


def _call(model: nn.Module, inputs: Any) -> Callable[[Tensor], Any]:
    return lambda _: model(**inputs) if isinstance(inputs, dict) else model(inputs)


class _First(nn.Module):
    """A block on its first rows alone; those cut off return as zeros behind the last one."""

    def __init__(self, block: nn.Module, cut: bool, last: bool, left: int) -> None:
        super().__init__()
        self.block, self.cut, self.last, self.left = block, cut, last, left

    def forward(self, x: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **others: Any) -> Tensor:
        """The rows (T, C) of a tower that packs images."""
        ends = cu_seqlens.clamp(max=len(x)).unique_consecutive()
        angles = tuple(part[: len(x)] for part in position_embeddings)
        x = self.block(x, cu_seqlens=ends, position_embeddings=angles, **others)
        x = x[: self.left] if self.cut else x
        return torch.cat([x, x.new_zeros(len(position_embeddings[0]) - len(x), x.shape[1])]) if self.last else x


def _first_rows(model: Any, left: int) -> nn.Module:
    for number, block in enumerate(model.blocks):
        model.blocks[number] = _First(block, number == SITE, number == DEPTH - 1, left)
    return model  # type: ignore[no-any-return]


class _Lines(nn.Module):
    """A block of maps on their first lines alone."""

    def __init__(self, block: nn.Module, cut: bool, last: bool, left: int) -> None:
        super().__init__()
        self.block, self.cut, self.last, self.left = block, cut, last, left

    def forward(self, x: Tensor) -> Tensor:
        """The maps (B, H, W, C) of an encoder that keeps its grid."""
        side = x.shape[2]
        x = self.block(x)
        x = x[:, : self.left // side] if self.cut else x
        return torch.cat([x, x.new_zeros(len(x), side - x.shape[1], *x.shape[2:])], dim=1) if self.last else x


def _first_lines(model: Any, left: int) -> nn.Module:
    layers = model.vision_encoder.layers
    for number, block in enumerate(layers):
        layers[number] = _Lines(block, number == SITE, number == DEPTH - 1, left)
    return model  # type: ignore[no-any-return]
