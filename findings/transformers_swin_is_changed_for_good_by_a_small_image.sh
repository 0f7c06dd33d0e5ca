#!/bin/sh
# One forward of transformers' Swin on a small image changes the model: the same image as before is answered otherwise.
#
# Where a side of a stage's map is not larger than the window, SwinLayer.forward sets self.window_size and self.shift_size
# to what fits and never sets them back. Any later image, of the size the model was made for, then goes through smaller
# windows that are not shifted any more, or, where the window shrank, meets a table of relative positions of another size
# and raises. Nothing is logged; save_pretrained writes the same config. Encoders around it that ask for
# always_partition (MaskFormer, OneFormer) run the same modules and are changed by a run of the backbone alone.
# Expected: a forward that depends on the weights, the config and the image.
#
# Seen with torch 2.15.0, transformers 5.24.0, SwinModel, windows of 4 on images of 128 pixels (maps of 32, 16, 8, 4):
#   before: the two blocks of the last stage have shifts 0 and 2; after one image of 128 pixels 0 and 0
#   always_partition=True before and after that run: the largest difference of the answers is above 0.01
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
  "$python" -m pip install --quiet torch==2.15.0 torchvision==0.29.2 transformers==5.24.0
fi
"$python" - <<'EOF'
from importlib.metadata import version

import torch
from transformers import SwinConfig, SwinModel

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions
torch.manual_seed(0)
sizes = {"window_size": 4, "embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 6]}
model = SwinModel(SwinConfig(image_size=128, **sizes)).eval()
for weight in (p for p in model.parameters() if p.dim() > 1):
    torch.nn.init.normal_(weight, std=0.2)
last = model.encoder.layers[-1].blocks
image = torch.randn(1, 3, 128, 128)


def whole():
    with torch.no_grad():
        return model(image, always_partition=True).last_hidden_state


before, shifts = whole(), [block.shift_size for block in last]
with torch.no_grad():
    model(image)
after, now = whole(), [block.shift_size for block in last]
print(f"shifts of the last stage: {shifts}, then {now}; largest difference {(before - after).abs().max():.3f}")
assert shifts == [0, 2] and now == [0, 0] and (before - after).abs().max() > 0.01
EOF
