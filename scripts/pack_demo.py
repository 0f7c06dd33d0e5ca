"""Put what ``tokensieve train`` learned for the demo into the package: the tensors that changed, in half precision.

    tokensieve train tokensieve_digits_vit --pretrained --stage selectors --method tosa:queries=all --lr 1e-2 \\
        --dataset digits --limit 960 -o digits-selectors
    tokensieve train tokensieve_digits_vit --pretrained --stage finetune --recipe bat --method bat:keep=0.775 \\
        TUNE -o digits-bat
    tokensieve train digits-selectors --stage finetune --recipe tosa TUNE -o digits-tosa \\
        --method 'tosa:keep=[0.85,0.75,0.6,0.45,0.35,0.25]:queries=all' --lr 3e-4
    python scripts/pack_demo.py digits-selectors digits-bat digits-tosa

where TUNE stands for ``--dataset digits --limit 9600 --steps 48 --batch-size 16 --no-aug --mixup 0 --cutmix 0
--reprob 0 --smoothing 0 --lr 1e-3 --weight-decay 0 --distill-logits 1 --train-only '*norm*' --train-only '*.bias'``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.demo.model import digits_vit
from tokensieve.demo.trained import TRAINED, selector_file
from tokensieve.files import replacing
from tokensieve.train.selectors import selectors_of


def changed(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model`` that are not the dense demo model's, fp16 where they are floating-point numbers."""
    dense = digits_vit().state_dict()
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if name not in dense or not torch.equal(value, dense[name])
    }


def write(tensors: dict[str, Tensor], path: Path) -> None:
    with replacing(path) as beside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside)
    print(f"wrote {path}, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selectors", type=Path)
    parser.add_argument("bat", type=Path)
    parser.add_argument("tosa", type=Path)
    args = parser.parse_args()
    fitted = selectors_of(ts.load(args.selectors))
    write({f"{block}.{name}": v for block, s in fitted.items() for name, v in s.state_dict().items()}, selector_file())
    for spec, file in TRAINED.items():
        model = ts.load(getattr(args, spec.partition(":")[0]))
        if ts.spell(ts.applied(model)) != spec:
            raise SystemExit(f"{file.name} is of {spec}, not of {ts.spell(ts.applied(model))}")
        write(changed(model), file)


if __name__ == "__main__":
    main()
