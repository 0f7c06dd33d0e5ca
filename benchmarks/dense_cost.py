"""What a dense model costs as images grow: time and memory at several sizes, and the exponent of the number of patches.

    python benchmarks/dense_cost.py MODEL --img-size 224 --img-size 512 --img-size 1024 --method SPEC …
        --output benchmarks/results/dense-cost-NAME.json

The dense model with a linear head, every variant and its oracle are timed interleaved at each size, on one image with
random weights. The exponent p is that of time ∝ patchesᵖ, by least squares over the sizes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

import tokensieve as ts
from tokensieve.files import replacing
from tokensieve.measure.bench import reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import DENSE, environment
from tokensieve.measure.runtime import Runtime
from tokensieve.measure.timing import Variant, time_variants
from tokensieve.tasks.model import dense_model
from tokensieve.tasks.segmentation import Segmentation

CLASSES = 19  # of Cityscapes, so that the head has a usual size


def measure(name: str, size: int, specs: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """One row for the dense model and each variant at one image size."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, img_size=size)
    dense = dense_model(backbone, Segmentation(classes=CLASSES))
    x = torch.randn(1, 3, size, size)
    variants = [Variant(DENSE, dense, count(dense, x))]
    for spec in specs:
        model = reduce(dense, ts.method(spec))
        variants.append(Variant(ts.spell(ts.applied(model)), model, count(model, x)))
    timings = time_variants(dense, variants, x, runtime=Runtime(), rounds=rounds, warmup=1)
    patches = math.prod(dense.patch_embed.grid_size)
    rows = []
    for variant in variants:
        promised = variants[0].report.total / variant.report.total
        row = {"variant": variant.name, "img_size": size, "patches": patches, "gmacs": variant.report.total / 1e9}
        row |= {"F": promised, "seconds": timings.variants[variant.name].median}
        if variant.name in timings.oracles:
            row["oracle_seconds"] = timings.oracles[variant.name].median
        rows.append(row | asdict(timings.speed(variant.name, promised)))
        print(line(rows[-1]), flush=True)
    return rows


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """p of y ∝ xᵖ, by least squares of the logarithms."""
    xs, ys = zip(*[(math.log(x), math.log(y)) for x, y in points], strict=True)
    middle, level = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True))
    return float(above / sum((x - middle) ** 2 for x in xs))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    free = "" if row["O"] is None else f"{row['O']:.2f}"
    part = "" if row["S_over_O"] is None else f"{row['S_over_O']:.2f}"
    mark = " ~" if row["noisy"] else ""
    memory = row["peak_memory"] / 1e6
    cells = [
        f"{row['img_size']}²",
        f"{row['patches']}",
        f"`{row['variant']}`",
        f"{row['gmacs']:.1f}",
        f"{row['F']:.2f}",
    ]
    cells += [f"{row['seconds']:.3f}{mark}", f"{row['S']:.2f}", free, part, f"{memory:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--img-size", type=int, action="append", required=True)
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    rows = [row for size in args.img_size for row in measure(args.model, size, args.method, args.rounds)]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    fitted: dict[str, dict[str, float]] = {}
    for name in names if len(args.img_size) > 1 else ():
        own = [row for row in rows if row["variant"] == name]
        fitted[name] = {
            what: exponent([(row["patches"], row[what]) for row in own])
            for what in ("seconds", "oracle_seconds", "peak_memory")
            if what in own[0]
        }
    header = ["size", "patches", "variant", "GMACs", "F", "seconds", "S", "O", "S/O", "peak MB"]
    lines = [f"# {args.model}, linear head, batch 1", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += [*map(line, rows), "", "~ the rounds lie more than 10 % apart, or an oracle moved.", ""]
    if fitted:
        lines += ["| variant | exponent of time | of the oracle's time | of memory |", "|---|---|---|---|"]
        for name, found in fitted.items():
            free = f"{found['oracle_seconds']:.2f}" if "oracle_seconds" in found else ""
            lines.append(f"| `{name}` | {found['seconds']:.2f} | {free} | {found['peak_memory']:.2f} |")
    content = {"settings": vars(args) | {"output": str(args.output)}, "environment": environment()}
    with replacing(args.output) as beside:
        beside.write_text(json.dumps(content | {"rows": rows, "exponents": fitted}, indent=2) + "\n", encoding="utf-8")
    with replacing(args.output.with_suffix(".md")) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[-len(fitted) :]))


if __name__ == "__main__":
    main()
