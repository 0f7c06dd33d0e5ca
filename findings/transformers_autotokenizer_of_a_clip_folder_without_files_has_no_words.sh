#!/bin/sh
# AutoTokenizer makes a CLIP tokenizer of two words out of a folder that has no tokenizer files, and says nothing.
#
# A folder that CLIPModel.save_pretrained has written holds config.json and the weights. The config names the tokenizer's
# class, so AutoTokenizer.from_pretrained builds a CLIPTokenizer with an empty vocabulary instead of raising: every word of
# every text becomes the token of unknown words, texts of one length are the same text, and zero-shot classification
# gives each class the same logit. A folder of SigLIP raises.
# Expected: an error that names the missing files, as for SigLIP.
#
# Seen with torch 2.15.0, transformers 5.24.0, a small random CLIP:
#   CLIPTokenizer of 2 tokens; "a photo of a cat" and "a photo of a dog" are the same ids; no warning
#   SigLIP's folder: raises
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
HF_HUB_OFFLINE=1 "$python" - "$work" <<'EOF'
import sys
import warnings
from importlib.metadata import version

from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions
small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
towers = {"text_config": {**small, "vocab_size": 64}, "vision_config": {**small, "image_size": 32, "patch_size": 16}}

clip = f"{sys.argv[1]}/clip"
CLIPModel(CLIPConfig(**towers)).save_pretrained(clip)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tokenizer = AutoTokenizer.from_pretrained(clip)
cat, dog = tokenizer(["a photo of a cat", "a photo of a dog"])["input_ids"]
print(f"{type(tokenizer).__name__} of {len(tokenizer)} tokens, same ids: {cat == dog}, warnings: {len(caught)}")
assert type(tokenizer).__name__ == "CLIPTokenizer" and len(tokenizer) == 2 and cat == dog and not caught

siglip = f"{sys.argv[1]}/siglip"
SiglipModel(SiglipConfig(**towers)).save_pretrained(siglip)
try:
    AutoTokenizer.from_pretrained(siglip)
except Exception as error:
    print(f"SigLIP's folder: {type(error).__name__}")
else:
    raise AssertionError("SigLIP's folder gave a tokenizer")
EOF
