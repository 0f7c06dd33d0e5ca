"""The images that the parity tests compare on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
