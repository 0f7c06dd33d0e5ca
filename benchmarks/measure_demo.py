"""The demo's packed models beside their settings off the shelf and the controls at the same MACs, as the demo measures.

    python benchmarks/measure_demo.py --images 2000 --output FILE.json

Each is compared at its own MACs with ToMe, EViT and random tokens, ToSA with its three controls too.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Literal

import tokensieve as ts
from tokensieve.demo.run import digits
from tokensieve.demo.trained import TRAINED
from tokensieve.measure.benchmark import bench, reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import Results
from tokensieve.measure.solver import solve
from tokensieve.methods.tosa import ToSA

CONTROLS: tuple[Literal["own", "class", "random"], ...] = ("own", "class", "random")
OTHERS = ("tome", "evit", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    subject = digits(args.images)
    dense, x = subject.model, subject.stream.first(1)
    variants = {}
    for spec, tuned in subject.trained.items():
        (method,) = ts.parse(spec)
        variants[f"{spec}, fine-tuned"] = tuned
        controls: list[ts.Method] = [method]
        if isinstance(method, ToSA):
            controls += [dataclasses.replace(method, score=score) for score in CONTROLS]
        share = count(tuned, x).total / count(dense, x).total
        solved = [solve(dense, ts.parse(name), share, x) for name in OTHERS]
        for methods in (*((control,) for control in controls), *solved):
            variants[ts.spell(methods)] = reduce(dense, methods)
            if ts.spell(methods) in TRAINED:
                subject.prepare(variants[ts.spell(methods)])
    results = Results({"images": args.images}, file=args.output)
    bench(dense, variants, subject.stream, results, batches=())
    for row in results.rows:
        values = (row.gmacs, row.top1, row.agreement, row.kl)
        print(f"| {row.variant} | " + " | ".join("–" if v is None else f"{v:.3f}" for v in values) + " |")


if __name__ == "__main__":
    main()
