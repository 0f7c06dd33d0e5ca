"""What ``tokensieve train`` learned for the demo model: ToSA's selectors, and a fine-tuned BAT and ToSA.

``scripts/pack_demo.py`` names the commands and writes the files. The fine-tuned models have the dense one's matrices:
only their norms and biases were trained, so a file holds just these.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from tokensieve.demo.model import digits_vit
from tokensieve.engine.apply import apply
from tokensieve.train.selectors import selectors_of

HERE = Path(__file__).parent
TRAINED = {
    "bat:keep=0.775": HERE / "digits_bat.safetensors",
    "tosa:keep=[1.0,1.0,0.66,0.28,0.1,0.05]": HERE / "digits_tosa.safetensors",
}
"""Spec to the tensors in which the fine-tuned model differs from the dense one, in fp16."""


def selector_file() -> Path:
    """``{block}.{parameter}`` of the selector that reads that block."""
    return HERE / "digits_selectors.safetensors"


def load_selectors(model: nn.Module) -> None:
    """Give a demo model with ToSA applied at its default layers the trained selectors."""
    weights = load_file(selector_file())
    for block, selector in selectors_of(model).items():
        prefix = f"{block}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        selector.load_state_dict(own, strict=True)


def fine_tuned(spec: str) -> nn.Module:
    """The fine-tuned demo model of one of ``TRAINED``, in evaluation mode."""
    model = apply(digits_vit(), spec)
    own = model.state_dict()
    for name, value in load_file(TRAINED[spec]).items():
        own[name] = value.to(own[name].dtype)
    model.load_state_dict(own)
    return model.eval()
