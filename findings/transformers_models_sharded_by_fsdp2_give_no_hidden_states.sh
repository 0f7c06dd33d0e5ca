#!/bin/sh
# A transformers model that PyTorch's FSDP2 shards hands out hidden_states=None, silently, when asked for them.
#
# fully_shard(model) gives the module a class of its own, derived from the model's. transformers keeps what a class can
# record (hidden states, attentions) in a table by str(model.__class__), filled when the model is made; the new class is
# not in it, no hook is installed, and output_hidden_states=True answers None without a word. A model that was asked once
# before it was sharded has its hooks and goes on to answer.
# Expected: the hidden states of every layer, as before fully_shard, or an error.
#
# Seen with torch 2.15.0, transformers 5.24.0, one process, gloo: 3 hidden states of a LlamaModel and of a ViTModel of
# two layers; None after fully_shard.
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
STORE="$work/store" "$python" - <<'EOF'
import os
from importlib.metadata import version

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaModel, ViTConfig, ViTModel

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions
dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
llama = LlamaConfig(**sizes, vocab_size=20, pad_token_id=0)
cases = (
    (lambda: LlamaModel(llama), torch.tensor([[1, 2, 3]])),
    (lambda: ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)), torch.zeros(1, 3, 32, 32)),
)
for make, given in cases:
    found = []
    for shard in (False, True):
        model = make().eval()
        if shard:
            fully_shard(model, mesh=mesh)
        with torch.no_grad():
            states = model(given, output_hidden_states=True).hidden_states
        found.append(None if states is None else len(states))
    print(f"{type(model).__name__}: hidden states {found[0]}, sharded {found[1]}")
    assert found == [3, None]
dist.destroy_process_group()
EOF
