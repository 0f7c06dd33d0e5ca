"""Learn how many tokens DiffRate prunes and merges in each block of DeiT-Tiny, for a few budgets.

The paper learns the numbers by gradient on ImageNet; this is a search without gradients that a laptop finishes in
minutes. A schedule is four numbers: the shape of the curve along which tokens leave, and the share of those that leave
by pruning in the first, the middle and the last block (linear between them, the rest merges); the height of the curve
is solved for, so that every candidate has the MACs of the budget. Each is ranked by KL(dense ‖ reduced) on photographs.
The search draws candidates around the best one so far, wider first, from a fixed seed.

    python benchmarks/search_diffrate.py --checkpoint F --data imagenette/train --macs 0.5 0.65 0.8
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import create_dataset, create_transform, resolve_data_config

import tokensieve as ts
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.families._layout import Layout
from tokensieve.methods.diffrate import DiffRate

DEPTH, PATCHES, CHANNELS = 12, 196, 192
DEIT_TINY = Layout(depth=DEPTH, dim=CHANNELS, heads=3, prefix=1, class_token=True, grid=(14, 14))
START = (1.0, 0.3, 0.3, 0.3)  # tokens leave at an even pace, a third of them by pruning
LEAST = 2 / PATCHES


def candidate(shape: tuple[float, ...], height: float) -> DiffRate:
    """The schedule of four numbers: 1 − height · ((block + 1) / depth)^curve tokens are left by each block."""
    curve, *shares = shape
    pruned, merged, before = [], [], 1.0
    for block in range(DEPTH):
        left = max(1 - height * ((block + 1) / DEPTH) ** curve, LEAST)
        place = 2 * block / (DEPTH - 1)
        low = min(int(place), 1)
        part = shares[low] + (place - low) * (shares[low + 1] - shares[low])
        pruned.append(round(before - part * (before - left), 3))
        merged.append(round(left, 3))
        before = left
    return DiffRate(pruned=tuple(pruned), merged=tuple(merged))


def macs(method: ts.Method) -> float:
    """Share of the dense model's MACs."""

    def cost(blocks: tuple[tuple[int, int], ...]) -> float:
        width = CHANNELS
        inside = sum(4 * a * width**2 + 2 * a * a * width + 8 * m * width**2 for a, m in blocks)
        return inside + PATCHES * 768 * width + 1000 * width

    return cost(counts(schedule((method,), DEIT_TINY), DEIT_TINY).blocks) / cost(((PATCHES + 1,) * 2,) * DEPTH)


def solve(shape: tuple[float, ...], share: float) -> DiffRate | None:
    """The candidate of this shape with the MACs of the budget, or None where it has none."""
    low, high = 0.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(candidate(shape, middle)) > share else (low, middle)
    found = candidate(shape, low)
    return found if abs(macs(found) - share) < 0.005 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.65, 0.8])
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = timm.create_model("deit_tiny_patch16_224").eval()
    model.load_state_dict({k: v.float() for k, v in load_file(args.checkpoint).items()})
    data = create_dataset("", root=args.data)
    data.transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    chosen = torch.linspace(0, len(data) - 1, args.limit).long().tolist()
    images = torch.stack([data[number][0] for number in chosen])

    @torch.inference_mode()
    def answers() -> torch.Tensor:
        return torch.cat([model(batch) for batch in images.split(40)]).log_softmax(1)

    dense = answers()

    def divergence(method: DiffRate) -> float:
        ts.apply(model, method)
        reduced = answers()
        ts.remove(model)
        return F.kl_div(reduced, dense, log_target=True, reduction="batchmean").item()

    draw = random.Random(args.seed)
    best: tuple[float, ...] = START
    for share in args.macs:  # a budget starts from what was best at the one before
        method = solve(best, share)
        assert method is not None
        lowest = divergence(method)
        for number in range(args.candidates):
            width = 0.4 * 0.93**number
            curve = best[0] * 2 ** draw.gauss(0, 2 * width)
            shape = (curve, *(min(max(part + draw.gauss(0, width), 0.0), 1.0) for part in best[1:]))
            tried = solve(shape, share)
            if tried is None:
                continue
            value = divergence(tried)
            if value < lowest:
                best, lowest, method = shape, value, tried
                print(f"{share}: {number} KL {value:.4f} {[round(part, 2) for part in shape]}", flush=True)
        print(f"    {share}: (\n        {method.pruned},\n        {method.merged},\n    ),", flush=True)


if __name__ == "__main__":
    main()
