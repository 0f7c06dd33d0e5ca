"""Lets the parity tests import ``reference`` and ``harness``, which lie beside them, and gives them images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
