"""Put what ``tokensieve train`` learned for the demo into the package, all but the selectors in half precision.

The dense model first, since everything else starts from what is packed:

    tokensieve train tokensieve_digits_vit --stage scratch --recipe scripts/digits_vit.yaml --dataset digits \\
        --split lessons --amp --seed 1 --val-limit 500 --evaluate-every 800 -o digits-vit
    python scripts/pack_demo.py digits-vit

    tokensieve train tokensieve_digits_vit --pretrained --stage selectors --method tosa --lr 1e-2 \\
        --dataset digits --limit 960 -o digits-selectors
    tokensieve train tokensieve_digits_vit --pretrained --stage finetune --recipe bat --method bat:keep=0.775 \\
        TUNE -o digits-bat
    tokensieve train digits-selectors --stage finetune --recipe tosa TUNE -o digits-tosa \\
        --method 'tosa:keep=[1.0,1.0,0.66,0.28,0.1,0.05]' --lr 3e-4
    python scripts/pack_demo.py digits-selectors digits-bat digits-tosa

where TUNE stands for ``--dataset digits --limit 9600 --steps 48 --batch-size 16 --no-aug --mixup 0 --cutmix 0
--reprob 0 --smoothing 0 --lr 1e-3 --weight-decay 0 --distill-logits 1 --train-only '*norm*' --train-only '*.bias'``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.demo.model import WEIGHTS, digits_vit
from tokensieve.demo.trained import TRAINED, selector_file
from tokensieve.train.selectors import selectors_of
from tokensieve.utils.files import replacing

SELECTORS = "tosa"


def halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of floating-point numbers in fp16."""
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as beside:
        save_file({name: value.contiguous() for name, value in tensors.items()}, beside)
    print(f"wrote {path}, {path.stat().st_size} bytes")


def pack(model: nn.Module) -> None:
    """The dense model whole, the selectors alone, and of fine-tuned models what is not the dense one's."""
    spec = ts.spell(ts.applied(model)) if ts.is_applied(model) else ""
    if not spec:
        write(halves(model.state_dict()), WEIGHTS)
    elif ts.applied(model) == ts.parse(SELECTORS):
        fitted = selectors_of(model)
        write({f"{block}.{n}": v for block, s in fitted.items() for n, v in s.state_dict().items()}, selector_file())
    elif spec in TRAINED:
        dense = digits_vit().state_dict()
        changed = {n: v for n, v in model.state_dict().items() if n not in dense or not torch.equal(v, dense[n])}
        write(halves(changed), TRAINED[spec])
    else:
        raise SystemExit(f"the demo has no file for {spec}: its models are dense, {SELECTORS}, {', '.join(TRAINED)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        pack(ts.load(folder))


if __name__ == "__main__":
    main()
