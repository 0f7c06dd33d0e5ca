"""Folders of tiny images with masks and depth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Folder = Callable[..., Path]


@pytest.fixture
def scenes(tmp_path: Path) -> Folder:
    """Write ``count`` images of (height, width) with masks of ``classes`` and depth in millimetres; gives the root."""

    def make(count: int = 4, size: tuple[int, int] = (48, 64), classes: int = 3, split: str = "") -> Path:
        root = tmp_path / "scenes"
        rng = np.random.default_rng(0)
        for kind in ("images", "masks", "depth"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colours = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(colours).save(root / split / "images" / f"{number}.png")
            mask = rng.integers(0, classes, size, dtype=np.uint8)
            mask[0, 0] = 255
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
            depth = rng.integers(500, 5000, size, dtype=np.uint16)
            depth[0, :5] = 0
            Image.fromarray(depth).save(root / split / "depth" / f"{number}.png")
        return root

    return make
