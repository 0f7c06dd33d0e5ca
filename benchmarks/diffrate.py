"""Learn how many tokens DiffRate prunes and merges in each block of a model, for a few budgets.

python -m benchmarks diffrate deit_tiny_patch16_224 --checkpoint F --data imagenette/train --macs 0.5 --macs 0.65

The paper learns the numbers by gradient on ImageNet; this is a search without gradients that a laptop finishes in
minutes. A schedule is four numbers: the shape of the curve along which tokens leave, and the share of those that leave
by pruning in the first, the middle and the last block (linear between them, the rest merges); the height of the curve
is solved for, so that every candidate has the MACs of the budget. Each is ranked by KL(dense ‖ reduced) on photographs.
The search draws candidates around the best one so far, wider first, from a fixed seed.
"""

from __future__ import annotations

import argparse
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.errors import TokensieveError
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import count
from tokensieve.methods.diffrate import DiffRate
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions

START: tuple[float, ...] = (1.0, 0.3, 0.3, 0.3)  # tokens leave at an even pace, a third of them by pruning
LEAST = 0.01  # of the tokens are left at least


def options(parser: argparse.ArgumentParser) -> None:
    """On what to search, and how long."""
    parser.add_argument("model")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--macs", type=float, action="append", help="shares of the dense MACs, default 0.5, 0.65, 0.8")
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)


def candidate(shape: tuple[float, ...], height: float, depth: int) -> DiffRate:
    """The schedule of four numbers: 1 − height · ((block + 1) / depth)^curve tokens are left by each block."""
    curve, *shares = shape
    pruned, merged, before = [], [], 1.0
    for block in range(depth):
        left = max(1 - height * ((block + 1) / depth) ** curve, LEAST)
        place = 2 * block / (depth - 1)
        low = min(int(place), 1)
        part = shares[low] + (place - low) * (shares[low + 1] - shares[low])
        pruned.append(round(before - part * (before - left), 3))
        merged.append(round(left, 3))
        before = left
    return DiffRate(pruned=tuple(pruned), merged=tuple(merged))


def solve(model: nn.Module, shape: tuple[float, ...], share: float, x: Tensor) -> DiffRate | None:
    """The candidate of this shape with the MACs of the budget, or None where it has none."""
    dense = count(model, x)

    def macs(height: float) -> float:
        return count(reduce(model, (candidate(shape, height, len(dense.blocks)),)), x).total / dense.total

    low, high = 0.0, 3.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) > share else (low, middle)
    return candidate(shape, low, len(dense.blocks)) if abs(macs(low) - share) < 0.005 else None


def run(given: argparse.Namespace) -> None:
    """Search budget by budget and print what is best so far."""
    model = create(ModelOptions(given.model, checkpoint=given.checkpoint))
    images = open_images(DataOptions(data=given.data, limit=given.limit, workers=1), model).first(given.limit)

    def divergence(method: DiffRate) -> float:
        return F.kl_div(answers(reduce(model, (method,)), images), dense, log_target=True, reduction="batchmean").item()

    dense, draw, best = answers(model, images), random.Random(given.seed), START
    for share in given.macs or (0.5, 0.65, 0.8):  # a budget starts from what was best at the one before
        method = solve(model, best, share, images[:1])
        if method is None:
            raise TokensieveError(
                f"no schedule of the shape {best} has {share} of the dense MACs: ask for another share"
            )
        lowest = divergence(method)
        for number in range(given.candidates):
            width = 0.4 * 0.93**number
            curve = best[0] * 2 ** draw.gauss(0, 2 * width)
            shape = (curve, *(min(max(part + draw.gauss(0, width), 0.0), 1.0) for part in best[1:]))
            tried = solve(model, shape, share, images[:1])
            if tried is not None and (value := divergence(tried)) < lowest:
                best, lowest, method = shape, value, tried
                print(f"{share}: {number} KL {value:.4f} {[round(part, 2) for part in shape]}", flush=True)
        print(f"    {share}: (\n        {method.pruned},\n        {method.merged},\n    ),", flush=True)


@torch.inference_mode()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """(B, classes), the log-probabilities of every image."""
    return torch.cat([model(batch) for batch in images.split(40)]).log_softmax(1)
