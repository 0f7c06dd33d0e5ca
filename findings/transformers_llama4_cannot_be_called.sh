#!/bin/sh
# Llama4ForConditionalGeneration of transformers 5.24.0 cannot be called, with images or without.
#
# Its forward ends with Llama4CausalLMOutputWithPast(..., image_outputs=outputs.image_outputs), and outputs is what its
# language model gives, a MoeCausalLMOutputWithPast, which has no image_outputs; that of the tower is at hand as
# mm_encoder_outputs["image"]. So model(input_ids=...) and model.generate(...) raise AttributeError in every model of the
# class, whatever return_dict says.
# Expected: logits, as from every other image-text-to-text class.
#
# Seen with torch 2.15.0, transformers 5.24.0:
#   AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
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
  "$python" -m pip install --quiet torch==2.15.0 transformers==5.24.0
fi
"$python" - <<'EOF'
from importlib.metadata import version

import torch
import transformers

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions

sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
text = {**sizes, "intermediate_size": 32, "intermediate_size_mlp": 32, "num_key_value_heads": 2, "head_dim": 16}
text |= {"vocab_size": 20, "num_local_experts": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
vision = {**sizes, "intermediate_size": 128, "image_size": 32, "patch_size": 8, "vision_output_dim": 32}
vision |= {"projector_input_dim": 32, "projector_output_dim": 32}
config = transformers.Llama4Config(text_config=text, vision_config=vision, image_token_index=19)
model = transformers.Llama4ForConditionalGeneration(config).eval()
prompt = torch.tensor([[1, 5, 6]])
for options in ({}, {"return_dict": False}):
    try:
        model(input_ids=prompt, **options)
    except AttributeError as error:
        print(f"{type(error).__name__}: {error}")
        assert "'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'" in str(error)
    else:
        raise SystemExit("the call gave an answer")
EOF
