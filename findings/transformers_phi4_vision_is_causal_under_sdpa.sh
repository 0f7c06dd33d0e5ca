#!/bin/sh
# The vision tower of Phi-4-multimodal in transformers answers otherwise with "sdpa" than with "eager": causally.
#
# Its attention sets is_causal = True and relies on a mask of padding that lets every patch see every other. Where no image
# is padded, create_bidirectional_mask gives no mask to the fused kernel (there is nothing to hide), and transformers'
# sdpa wrapper takes "no mask and module.is_causal" to mean a causal attention. So whether a patch sees those behind it
# depends on whether some image of the batch happens to be padded, and on the attention implementation; "sdpa" is the
# default. Neither warns.
# Expected: the same answer by both, as with is_causal = False, which SigLIP's tower, from which this one comes, has.
#
# Seen with torch 2.15.0, transformers 5.24.0, a small random tower, float32, one image of 8 x 8 patches:
#   the last patch is changed: sdpa, no padding: 0 of the 63 patches before it change; eager: 63
#   sdpa, with another image in the batch that is padded: 63
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
from transformers import Phi4MultimodalVisionConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalVisionModel

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions


def changed(attention, padded):
    """How many of an image's first 63 patches answer otherwise when its last patch does."""
    torch.manual_seed(0)
    config = Phi4MultimodalVisionConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=128, patch_size=16
    )
    config._attn_implementation = attention
    model = Phi4MultimodalVisionModel._from_config(config, attn_implementation=attention).eval()
    for weight in (p for p in model.parameters() if p.dim() > 1):
        torch.nn.init.normal_(weight, std=0.2)
    images = torch.randn(2, 3, 128, 128)
    other = images.clone()
    other[0, :, -16:, -16:] += 1  # the last patch of the first image
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    if padded:
        mask[1, :, 5:] = False
    with torch.no_grad():
        one, two = (model(x, patch_attention_mask=mask).last_hidden_state for x in (images, other))
    return int(((one - two)[0, :63].abs().amax(dim=1) > 1e-6).sum())


found = {(a, p): changed(a, p) for a in ("sdpa", "eager") for p in (False, True)}
for (attention, padded), count in found.items():
    print(f"{attention}, {'with' if padded else 'without'} a padded image in the batch: {count} of 63 patches change")
assert found == {("sdpa", False): 0, ("sdpa", True): 63, ("eager", False): 63, ("eager", True): 63}, found
EOF
