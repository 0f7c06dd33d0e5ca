"""The demo model's trained ToSA selectors, in the package."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from tokensieve.train.selectors import selectors_of

SELECTORS = Path(__file__).with_name("digits_selectors.safetensors")
"""Written by scripts/train_demo_selectors.py: ``{block}.{parameter}`` of the selector that reads that block."""


def load_selectors(model: nn.Module) -> None:
    """Give a demo model with ToSA applied at its default layers the trained selectors."""
    weights = load_file(SELECTORS)
    for block, selector in selectors_of(model).items():
        prefix = f"{block}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        selector.load_state_dict(own, strict=True)
