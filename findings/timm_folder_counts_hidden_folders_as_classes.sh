#!/bin/sh
# timm's ImageFolder takes hidden folders for classes, and they move every label by one.
#
# A notebook that was opened in the folder of images leaves .ipynb_checkpoints there, with copies of pictures. The reader
# of timm.data.create_dataset walks all folders. A hidden name sorts before the others, so it becomes class 0 and every
# true class is one further on: a pretrained classifier measured on it is wrong everywhere, without a word. Copies that
# macOS packs into __MACOSX/cat are images of class "cat", since only the last folder's name counts.
# Expected: hidden folders are left out, or named in a warning.
#
# Seen with torch 2.15.0, torchvision 0.29.2, timm 1.0.31, Pillow 13.0.0:
#   without: {'cat': 0, 'dog': 1}, 2 images
#   with:    {'.ipynb_checkpoints': 0, 'cat': 1, 'dog': 2}, 4 images
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
  "$python" -m pip install --quiet torch==2.15.0 torchvision==0.29.2 timm==1.0.31 pillow==13.0.0
fi
"$python" - "$work" <<'EOF'
import sys
from pathlib import Path

import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_dataset

versions = [torch.__version__.partition("+")[0], torchvision.__version__.partition("+")[0], timm.__version__, PIL.__version__]
assert versions == ["2.15.0", "0.29.2", "1.0.31", "13.0.0"], versions

root = Path(sys.argv[1]) / "images"


def put(*folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / folder / "one.png")


def read() -> tuple[dict[str, int], int]:
    images = create_dataset("", root=str(root))
    return images.reader.class_to_idx, len(images)


put("cat", "dog")
print("without: {}, {} images".format(*read()))
assert read() == ({"cat": 0, "dog": 1}, 2)
put(".ipynb_checkpoints", "__MACOSX/cat")
print("with:    {}, {} images".format(*read()))
assert read() == ({".ipynb_checkpoints": 0, "cat": 1, "dog": 2}, 4), "the behaviour has changed"
EOF
