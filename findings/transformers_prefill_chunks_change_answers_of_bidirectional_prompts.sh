#!/bin/sh
# generate(prefill_chunk_size=…) silently changes what PaliGemma answers; for LLaVA it changes nothing.
#
# PaliGemma's image and prompt see each other both ways. A prompt that is prefilled in chunks gets a mask for each chunk:
# its tokens see the chunks before and their own, never those that follow, which the model was trained to see. Nothing is
# logged and nothing is raised; logits of the first generated token differ. Gemma 3, whose image tokens see each other
# both ways, differs alike where a chunk ends inside an image.
# Expected: the option, meant to save memory, gives the same answer as without, or is refused for such models.
#
# Seen with torch 2.15.0, transformers 5.24.0, random weights in float64, a prompt of 21 tokens with an image of 16, chunks
# of 8: the logits of PaliGemma's first token move by more than 0.001, those of LLaVA's by less than 1e-6.
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
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
text = {**small, "hidden_size": 48, "vocab_size": 100, "num_key_value_heads": 2, "head_dim": 12, "pad_token_id": 0}
square = {"image_size": 32, "patch_size": 8}


def paligemma():
    vision = tf.SiglipVisionConfig(**small, **square, vision_use_head=False, projection_dim=48)
    config = tf.PaliGemmaConfig(
        vision_config=vision, text_config=tf.GemmaConfig(**text), image_token_id=IMAGE, projection_dim=48
    )
    return tf.PaliGemmaForConditionalGeneration(config), {"token_type_ids": torch.zeros(1, 21, dtype=torch.long)}


def llava():
    vision = tf.CLIPVisionConfig(**small, **square)
    config = tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**text), image_token_id=IMAGE)
    return tf.LlavaForConditionalGeneration(config), {}


ids = torch.tensor([[*[IMAGE] * 16, 1, 5, 6, 7, 8]])
pixels = torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.float64).sin().reshape(1, 3, 32, 32)
moved = {}
for make in (paligemma, llava):
    torch.manual_seed(0)
    model, types = make()
    model = model.double().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **types}
    first = []
    for options in ({}, {"prefill_chunk_size": 8}):
        answer = model.generate(
            **inputs, **options, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        first.append(answer.logits[0])
    moved[make.__name__] = float((first[0] - first[1]).abs().max())
print(moved)
assert moved["paligemma"] > 1e-3 and moved["llava"] < 1e-6
EOF
