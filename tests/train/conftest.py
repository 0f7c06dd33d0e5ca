"""A tiny model, a folder of random pictures, and runs of training on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate", reason="the train extra is not installed")

from tokensieve.train.options import TrainOptions

Arguments = Callable[..., TrainOptions]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 40 × 40 in three class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(24):
        place = folder / f"class{number % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def arguments(pictures: Path, tmp_path: Path) -> Arguments:
    """Arguments of a short run; keywords change them."""

    def make(**changes: Any) -> TrainOptions:
        given: dict[str, Any] = {
            "model": "test_vit",
            "img_size": 64,
            "num_classes": 3,
            "stage": "finetune",
            "method": "tome:r=2",
            "recipe": "bat",
            "data": (str(pictures),),
            "output": str(tmp_path / "run"),
            "steps": 6,
            "workers": 0,
            "device": "cpu",
            "rounds": 0,
            "checkpoint_every": 2,
        }
        options = {"changes": {"batch_size": 4} | changes.pop("changes", {})}
        return TrainOptions(**(given | options | changes))

    return make
