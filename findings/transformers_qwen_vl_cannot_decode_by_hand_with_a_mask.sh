#!/bin/sh
# A step of decoding Qwen2-VL, Qwen2.5-VL or Qwen3-VL by hand raises when the attention mask of the sequence is given, and
# is right without it.
#
# The loop that most decoders take: model(input_ids=next_token, cache=cache, attention_mask=mask_of_everything). These
# make position ids from the mask, of the whole sequence, and hand them to a decoder that is given one token: the
# rotary embedding has another length than the queries. generate() slices the ids itself, so it is not affected.
# Expected: the logits that a forward of the whole sequence gives for that token, as without the mask.
#
# Seen with torch 2.15.0, transformers 5.24.0, random weights in float64, a prompt with one image: with the mask a
# RuntimeError about shapes, in all three; without it logits equal to the whole forward's to 1e-9.
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
import transformers as tf

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions
IMAGE = 99
text = {
    **{"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
}
tower = {
    **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 48},
}
names = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
cases = {
    "Qwen2VL": {**tower, "embed_dim": 32, "hidden_size": 48},
    "Qwen2_5_VL": {**tower, "window_size": 32, "fullatt_block_indexes": [1]},
    "Qwen3VL": {**tower, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
}
prompt = torch.tensor([[1, 5, 97, *[IMAGE] * 4, 96, 6, 7]])
following = torch.tensor([[8]])
image = {
    "pixel_values": torch.linspace(-1, 1, 16 * 384, dtype=torch.float64).sin().reshape(16, 384),
    "image_grid_thw": torch.tensor([[1, 4, 4]]),
}


def types(ids):
    return {"mm_token_type_ids": (ids == IMAGE).long()}


found = {}
for name, vision in cases.items():
    config = getattr(tf, f"{name}Config")(text_config=text, vision_config=vision, **names)
    torch.manual_seed(0)
    model = getattr(tf, f"{name}ForConditionalGeneration")(config).double().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    whole = torch.cat([prompt, following], dim=1)
    with torch.no_grad():
        expected = model(input_ids=whole, attention_mask=torch.ones_like(whole), **image, **types(whole)).logits[:, -1]
        result = []
        for mask in (None, torch.ones_like(whole)):
            cache = model(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **image, **types(prompt)
            ).cache
            try:
                logits = model(input_ids=following, cache=cache, attention_mask=mask).logits[:, -1]
                result.append("right" if torch.allclose(logits, expected, atol=1e-9) else "wrong")
            except RuntimeError:
                result.append("raises")
    found[name] = result
print(found)
assert all(result == ["right", "raises"] for result in found.values())
EOF
