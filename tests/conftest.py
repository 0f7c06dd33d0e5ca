"""What every test shares: no network, no window, the same random numbers, and where real images are, if anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for every test, in whatever order they run."""
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real weights and images: $TOKENSIEVE_DATA, else ../shared/data beside the clone."""
    folder = Path(os.environ.get("TOKENSIEVE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real weights and images: no folder {folder}; set TOKENSIEVE_DATA to it")
    return folder
