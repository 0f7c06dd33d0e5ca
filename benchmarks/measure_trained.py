"""Trained models, untrained methods and the dense model they came from, on the same labelled images.

    python benchmarks/measure_trained.py MODEL [--pretrained | --checkpoint F] --data IMAGES | --dataset digits
        --folder DIR --method SPEC --output FILE.json

Unlike ``tokensieve eval DIR``, agreement is with the dense MODEL as it was before training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tokensieve as ts
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.measure.benchmark import bench, reduce
from tokensieve.measure.results import Results
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--folder", action="append", default=[])
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    dense = create(ModelOptions(args.model, pretrained=args.pretrained, checkpoint=args.checkpoint))
    images = open_images(DataOptions(data=args.data, dataset=args.dataset, limit=args.limit, workers=1), dense)
    variants = {}
    for folder in args.folder:
        model = ts.load(folder)
        variants[f"{ts.spell(ts.applied(model))}, {Path(folder).name}"] = model
    for spec in args.method:
        for methods in ts.sweep(spec):
            variants[ts.spell(methods)] = reduce(dense, methods)
    results = Results(vars(args) | {"output": str(args.output)}, file=args.output)
    bench(dense, variants, images, results, batches=())
    for row in results.rows:
        values = (row.gmacs, row.top1, row.agreement, row.kl)
        print(f"| {row.variant} | " + " | ".join("–" if v is None else f"{v:.3f}" for v in values) + " |")


if __name__ == "__main__":
    main()
