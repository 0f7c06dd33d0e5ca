#!/bin/sh
# A forward that is patched on a layer's class is not seen by layers of transformers that FSDP2 has sharded before.
#
# Token reduction, adapters and profilers often patch the class: ViTLayer.forward = mine. fully_shard gives each layer a
# class of its own, derived from the layer's. A derived class looks its forward up in its base, so that a later patch of
# the base holds for plain torch modules. Layers of transformers are derived from GradientCheckpointingLayer, whose
# __init_subclass__ puts a wrapper of the forward of that moment into every derived class, FSDP2's too: the patch is
# never called, without a word.
# Expected: the same as for a plain torch module.
#
# Seen with torch 2.15.0, transformers 5.24.0, one process on a CPU:
#   plain torch module: patched forward called
#   ViTLayer: patched forward not called
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
  "$python" -m pip install --quiet torch==2.15.0 transformers==5.24.0 numpy
fi
"$python" - "$work" <<'EOF'
import sys

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.vit.modeling_vit import ViTLayer

assert torch.__version__.partition("+")[0] == "2.15.0" and transformers.__version__ == "5.24.0"
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/group", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def layer() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
    return transformers.ViTModel(config).eval().layers[0]


def calls_patch(module: nn.Module, cls: type, x: torch.Tensor) -> bool:
    called = []
    own = cls.forward

    def patched(self, *args, **kwargs):
        called.append(True)
        return own(self, *args, **kwargs)

    fully_shard(module, mesh=mesh)
    cls.forward = patched
    with torch.no_grad():
        module(x)
    cls.forward = own
    return bool(called)


found = {
    "plain torch module": calls_patch(Plain(), Plain, torch.randn(2, 4)),
    "ViTLayer": calls_patch(layer(), ViTLayer, torch.randn(1, 5, 8)),
}
for name, called in found.items():
    print(f"{name}: patched forward {'called' if called else 'not called'}")
dist.destroy_process_group()
assert list(found.values()) == [True, False], "the behaviour has changed"
EOF
