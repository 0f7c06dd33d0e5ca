"""Train the ToSA selectors of the demo model, without labels: KL to the next layer's attention map.

    python scripts/train_demo_selectors.py

Deterministic: the same seed gives the same file. Prints the KL of every selector beside that of the layer's own map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import tokensieve as ts
from tokensieve.demo.digits import ClutteredDigits
from tokensieve.demo.model import digits_vit
from tokensieve.demo.selectors import SELECTORS
from tokensieve.train.selectors import fit_selectors, selectors_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=SELECTORS)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    model = ts.apply(digits_vit().eval(), ts.method("tosa"))
    digits = ClutteredDigits("train", args.steps * args.batch_size, seed=args.seed + 1)
    images = torch.stack([digits[index][0] for index in range(len(digits))])
    for loss in fit_selectors(model, images.split(args.batch_size)):
        print(f"block {loss.block:2d}: KL {loss.fitted:.3f}, own map {loss.own:.3f}")
    weights = {
        f"{block}.{name}": value.contiguous()
        for block, selector in selectors_of(model).items()
        for name, value in selector.state_dict().items()
    }
    beside = args.output.with_suffix(".writing")
    save_file(weights, beside)
    beside.replace(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
