"""The highest scores and the rest, each in order of position."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import launch, power_of_two
from tokensieve.ops.cuda.ordering import highest, ordered


@triton.jit
def write_split(chosen, length, count, image, top, others, BLOCK: tl.constexpr):
    """Write the places where ``chosen`` (1, BLOCK) holds to ``top`` (B, count), the rest to ``others``."""
    lanes = tl.arange(0, BLOCK)[None, :]
    before = tl.cumsum(chosen.to(tl.int32), axis=1)
    tl.store(top + image * count + before - 1, lanes.to(tl.int64), mask=chosen)
    rest = (lanes < length) & (chosen == 0)
    tl.store(others + image * (length - count) + lanes - before, lanes.to(tl.int64), mask=rest)


@triton.jit(do_not_specialize=["length", "count"])
def _split_top(score, top, others, score_image, score_token, length, count, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)[None, :]
    there = lanes < length
    values = tl.load(score + image * score_image + lanes * score_token, mask=there, other=0.0).to(tl.float32)
    chosen = highest(tl.where(there, ordered(values), 0), count)
    write_split(chosen, length, count, image, top, others, BLOCK)


def split_top(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See ``tokensieve.ops.rows.split_top``."""
    batch, length = score.shape
    top = torch.empty(batch, count, dtype=torch.int64, device=score.device)
    others = torch.empty(batch, length - count, dtype=torch.int64, device=score.device)
    block = power_of_two(length, 16)
    warps = 1 if block <= 128 else 4 if block <= 2048 else 8 if block <= 4096 else 16
    launch(_split_top, (batch,), score, top, others, *score.stride(), length, count, BLOCK=block, num_warps=warps)
    return top, others
