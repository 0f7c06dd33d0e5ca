"""ToSA with trained selectors against its three controls at equal token counts, on labelled images.

    python benchmarks/measure_tosa.py FOLDER --data IMAGES --keep 0.7 --keep 0.5 --output FILE.json

FOLDER is what ``tokensieve train --stage selectors`` wrote. Also prints each layer's KL from the next layer's attention
map, of the selector and of the layer's own map, on the first images.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Literal

import torch

import tokensieve as ts
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.measure.benchmark import bench
from tokensieve.measure.results import Results
from tokensieve.methods.tosa import ToSA
from tokensieve.train.prepare import replace_methods
from tokensieve.train.selectors import attention_of, kl_streamed, selectors_of

CONTROLS: tuple[Literal["own", "class", "random"], ...] = ("own", "class", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--keep", type=float, action="append", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    model = ts.load(args.folder)
    (method,) = ts.applied(model)
    assert isinstance(method, ToSA)
    dense = ts.remove(copy.deepcopy(model))
    images = open_images(DataOptions(data=args.data, limit=args.limit, workers=1), dense)
    variants = {}
    for keep in args.keep:
        trained = dataclasses.replace(method, keep=keep)
        controls = [dataclasses.replace(trained, score=control) for control in CONTROLS]
        for config in (trained, *controls):
            variant = copy.deepcopy(model)
            replace_methods(variant, (config,))
            variants[ts.spell(config)] = variant
    results = Results(vars(args) | {"folder": str(args.folder), "output": str(args.output)}, file=args.output)
    bench(dense, variants, images, results, batches=())
    for row in results.rows:
        values = (row.gmacs, row.top1, row.agreement, row.kl)
        print(f"| {row.variant} | " + " | ".join("–" if v is None else f"{v:.3f}" for v in values) + " |")
    maps = attention_of(dense, images.first(64))
    with torch.no_grad():
        for block, selector in selectors_of(model).items():
            fitted, own = kl_streamed(selector, maps[block], maps[block + 1])
            print(f"layer {block + 1}: KL {fitted:.3f}, own map {own:.3f}")


if __name__ == "__main__":
    main()
