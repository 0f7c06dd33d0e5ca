"""Means over heads, and rows scaled to length one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokensieve.ops.cuda.launch import blocks, launch, power_of_two

TILE = 4096  # entries that a program holds


@triton.jit(do_not_specialize=["heads", "length"])
def _mean_rows(
    features,
    out,
    features_image,
    features_head,
    features_token,
    heads,
    length,
    dim,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    lanes = tl.arange(0, BLOCK)[None, :]
    here = (rows < length) & (lanes < dim)
    places = features + image * features_image + rows * features_token + lanes
    mean = tl.zeros([ROWS, BLOCK], tl.float32)
    for head in range(heads):
        mean += tl.load(places + head * features_head, mask=here, other=0.0).to(tl.float32)
    if UNIT:
        norm = tl.sqrt_rn(tl.sum(mean * mean, axis=1))
        mean = tl.div_rn(mean, tl.maximum(norm, 1e-12)[:, None])
    else:
        mean = tl.div_rn(mean, heads.to(tl.float32))
    tl.store(out + (image * length + rows) * dim + lanes, mean, mask=here)


def _launched(features: Tensor, unit: bool) -> Tensor:
    batch, heads, length, dim = features.shape
    out = torch.empty(batch, length, dim, dtype=torch.float32, device=features.device)
    block = power_of_two(dim, 16)
    rows = max(1, TILE // block)
    steps = features.stride()[:3]
    grid = (blocks(length, rows), batch)
    launch(_mean_rows, grid, features, out, *steps, heads, length, dim, UNIT=unit, ROWS=rows, BLOCK=block)
    return out


def head_mean(features: Tensor) -> Tensor:
    """See ``tokensieve.ops.rows.head_mean``."""
    return _launched(features, unit=False)


def unit_rows(features: Tensor) -> Tensor:
    """See ``tokensieve.ops.rows.unit_rows``."""
    return _launched(features.unsqueeze(1), unit=True)
