"""Search for the settings of BAT that lose least on a model that is not fine-tuned.

For every combination of sites, cluster share, metric and weight, ``keep`` is solved for so that all have the same MACs;
each is then compared with the dense model on real images. Ranked by KL to the dense model, which is less noisy than
accuracy.

    python benchmarks/search_bat.py deit_tiny_patch16_224 --checkpoint F --data FOLDER --class-map FILE --macs 0.558
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import create_dataset, create_transform, resolve_data_config

import tokensieve as ts
from tokensieve.families._locate import family_of
from tokensieve.methods.bat import BAT

SITES = ((3, 5, 7, 9), (3, 4, 6, 8, 10), (3, 4, 5, 6, 7, 8, 9), (2, 3, 5, 7, 9), (4, 6, 8, 10))


def macs(model: torch.nn.Module, method: ts.Method) -> float:
    """GMACs of the blocks, from the schedule alone, plus patch embedding and head."""
    located = family_of(model)
    layout, blocks = located.family.layout(located.owner), located.family.blocks(located.owner)
    acting = {block: site for site, block in enumerate(method.blocks(layout.depth))}
    patches = layout.grid[0] * layout.grid[1]
    total = patches * 768 * layout.dim + 1000 * layout.dim
    for number, block in enumerate(blocks):
        cost = located.family.macs(block)
        attended = patches + layout.prefix
        if number in acting:
            patches = method.remaining(patches, acting[number], layout)
        total += cost.attention_linear * attended + 2 * cost.attention_width * attended**2
        total += cost.mlp_linear * (patches + layout.prefix)
    return total / 1e9


def solve(model: torch.nn.Module, target: float, **options: Any) -> ts.Method | None:
    """The BAT with these options whose MACs come nearest to ``target`` GMACs."""
    choices = [BAT(keep=k / 500, **options) for k in range(150, 500)]
    best = min(choices, key=lambda m: abs(macs(model, m) - target))
    return best if abs(macs(model, best) - target) < 0.01 * target else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--class-map", required=True)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.558], help="shares of the dense model's MACs")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--clusters", type=float, nargs="+", default=[0.5, 0.8, 0.95])
    parser.add_argument("--metric", nargs="+", default=["x", "keys"])
    parser.add_argument("--weight", nargs="+", default=["size"])
    parser.add_argument("--also", nargs="*", default=[], help="specs to compare with")
    parser.add_argument("--results-file", type=Path, required=True)
    args = parser.parse_args()

    model = timm.create_model(args.model).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(args.checkpoint).items()})
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    data = create_dataset("", root=args.data, class_map=args.class_map)
    data.transform = transform
    chosen = torch.linspace(0, len(data) - 1, min(args.limit, len(data))).long().tolist()
    samples = [data[i] for i in chosen]
    images, labels = torch.stack([s[0] for s in samples]), torch.tensor([s[1] for s in samples])

    @torch.inference_mode()
    def logits() -> torch.Tensor:
        return torch.cat([model(batch) for batch in images.split(50)])

    dense = logits()
    rows = [{"method": "dense", "gmacs": None, "top1": (dense.argmax(1) == labels).float().mean().item() * 100}]
    print(rows[0], flush=True)
    full = macs(model, BAT(keep=1.0))
    specs: list[tuple[ts.Method | None, str | None]] = [(None, s) for s in args.also]
    for share, sites, clusters, metric, weight in itertools.product(
        args.macs, SITES, args.clusters, args.metric, args.weight
    ):
        options = dict(sites=sites, clusters=clusters, metric=metric, weight=weight, proportional=weight == "size")
        specs.append((solve(model, share * full, **options), None))
    for method, spec in specs:
        wanted = method or spec
        if wanted is None:
            continue
        start = time.perf_counter()
        ts.apply(model, wanted)
        out = logits()
        ts.remove(model)
        row = {
            "method": str(wanted),
            "gmacs": round(macs(model, method), 4) if method else None,
            "top1": round((out.argmax(1) == labels).float().mean().item() * 100, 2),
            "agreement": round((out.argmax(1) == dense.argmax(1)).float().mean().item() * 100, 2),
            "kl": round(
                F.kl_div(out.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean").item(), 4
            ),
            "seconds": round(time.perf_counter() - start, 1),
        }
        rows.append(row)
        print(row, flush=True)
        args.results_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
