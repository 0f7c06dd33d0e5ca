#!/bin/sh
# A LoRA adapter of peft on the qkv layer of timm's BEiT changes nothing and learns nothing.
#
# timm's BEiT keeps the biases of queries and values apart from its linear layer qkv and, unless it is told otherwise
# (qkv_bias_separate), computes F.linear(x, self.qkv.weight, bias) instead of calling the layer. peft puts its own module
# in the place of qkv, whose attribute "weight" is that of the frozen layer inside: so the adapter is never run. peft
# reports its trainable parameters, the answer equals that of the bare model bit for bit with adapters of any value, and
# where qkv alone is adapted the loss has no gradient at all. The same target in timm's vision_transformer works.
# Expected: the adapter takes part, or peft or timm says that it does not.
#
# Seen with torch 2.15.0, torchvision 0.29.2, timm 1.0.31, peft 0.21.2, transformers 5.24.0:
#   vit_tiny_patch16_224: the adapter changes the answer, 2 of 2 adapters have a gradient
#   beit_base_patch16_224: the answer is the same bit for bit, the loss needs no gradient
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
  "$python" -m pip install --quiet torch==2.15.0 torchvision==0.29.2 timm==1.0.31 peft==0.21.2 transformers==5.24.0
fi
"$python" - <<'EOF'
from importlib.metadata import version

import timm
import torch
from peft import LoraConfig, get_peft_model

versions = [version(name).partition("+")[0] for name in ("torch", "torchvision", "timm", "peft", "transformers")]
assert versions == ["2.15.0", "0.29.2", "1.0.31", "0.21.2", "5.24.0"], versions


def adapted(name):
    """Whether the adapter changes the answer, and how many of its parameters get a gradient."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=64, depth=1, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False)).eval()
    after = wrapped(x)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert trained and sum(p.numel() for p in trained) > 0
    if not after.requires_grad:
        return torch.equal(before, after), None, len(trained)
    after.square().sum().backward()
    return torch.equal(before, after), sum(p.grad is not None for p in trained), len(trained)


same, graded, adapters = adapted("vit_tiny_patch16_224")
print(f"vit_tiny_patch16_224: same answer {same}, {graded} of {adapters} adapters have a gradient")
assert not same and graded == adapters == 2

same, graded, adapters = adapted("beit_base_patch16_224")
print(f"beit_base_patch16_224: same answer {same}, the loss needs a gradient: {graded is not None}")
assert same and graded is None
EOF
