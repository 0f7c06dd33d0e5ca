#!/bin/sh
# timm's ImageFolder reads a 16-bit grey PNG as white, with its own transform and without a word.
#
# Microscopes, depth cameras and scanners write 16-bit grey PNGs. timm.data.create_dataset opens them with Pillow and
# calls convert("RGB"), which clips values at 255 and does not scale them: every pixel brighter than 1/257 of white comes
# out as 255. torchvision's ImageFolder does the same. A model is then shown white pictures, and its accuracy is chance.
# Expected: the picture, scaled to 8 bits, or an error that names the mode.
#
# Seen with torch 2.15.0, torchvision 0.29.2, timm 1.0.31, Pillow 13.0.0:
#   file: mode I;16, from 0 to 65535
#   timm: 99.6 % of the pixels are 255
#   torchvision: 99.6 % of the pixels are 255
#
# FINDINGS_PYTHON may name a Python that has exactly these versions; else they are installed (the registry's torch is
# several gigabytes). Exits 0 while the behaviour is as described.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "${FINDINGS_PYTHON:-}" ]; then
  python=$FINDINGS_PYTHON
else
  python3 -m venv "$work/venv"
  python=$work/venv/bin/python
  "$python" -m pip install --quiet torch==2.15.0 torchvision==0.29.2 timm==1.0.31 pillow==13.0.0 numpy
fi
"$python" - "$work" <<'EOF'
import sys
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_dataset

versions = [torch.__version__.partition("+")[0], torchvision.__version__.partition("+")[0], timm.__version__, PIL.__version__]
assert versions == ["2.15.0", "0.29.2", "1.0.31", "13.0.0"], versions

root = Path(sys.argv[1]) / "images"
(root / "a").mkdir(parents=True)
ramp = np.linspace(0, 65535, 256 * 256).round().astype(np.uint16).reshape(256, 256)
Image.fromarray(ramp).save(root / "a" / "ramp.png")
with Image.open(root / "a" / "ramp.png") as image:
    values = np.asarray(image)
    print(f"file: mode {image.mode}, from {values.min()} to {values.max()}")
    assert image.mode == "I;16"

for name, (picture, _) in {
    "timm": create_dataset("", root=str(root))[0],
    "torchvision": torchvision.datasets.ImageFolder(str(root))[0],
}.items():
    share = float((np.asarray(picture) == 255).mean())
    print(f"{name}: {share:.1%} of the pixels are 255".replace("%", " %"))
    assert share > 0.99, "the behaviour has changed"
EOF
