#!/bin/sh
# A model of transformers can be saved whole with torch.save, but not any more once it has given its hidden states.
#
# The first forward that collects hidden states or attentions registers hooks on the layers that are functions inside of
# a function (install_output_capuring_hook in utils/output_capturing.py). They stay on the modules, and pickle cannot
# write them: torch.save(model), pickle.dumps(model) and whatever pickles a model to send it to another process
# (multiprocessing with "spawn", joblib) work before and fail afterwards. Models like LLaVA read a hidden state of their
# tower in every call with an image. copy.deepcopy still works.
# Expected: a model that can be pickled stays so whatever it is called with.
#
# Seen with torch 2.15.0, transformers 5.24.0:
#   before a call: saved
#   after a call with output_hidden_states=True: AttributeError: Can't pickle local object 'install_output_capuring_hook.<locals>.output_capturing_hook'
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
import io
from importlib.metadata import version

import torch
import transformers

versions = [version(name).partition("+")[0] for name in ("torch", "transformers")]
assert versions == ["2.15.0", "5.24.0"], versions

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, vocab_size=20)).eval()


def saved():
    """What torch.save says of the model."""
    try:
        torch.save(model, io.BytesIO())
    except AttributeError as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


print("before a call:", saved())
assert saved() == "saved"
model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
print("after a call with output_hidden_states=True:", saved())
assert saved() == (
    "AttributeError: Can't pickle local object 'install_output_capuring_hook.<locals>.output_capturing_hook'"
)
EOF
