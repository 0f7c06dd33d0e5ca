"""Every image-text-to-text class of transformers: fewer image tokens are exact on it, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.walk_record import counted

transformers = pytest.importorskip("transformers")
from tests.helpers import walk_language  # noqa: E402
from tests.helpers.hidden_layers import seen  # noqa: E402

FEW = {
    "AyaVisionForConditionalGeneration": ("exact", "refused"),
    "Glm4vForConditionalGeneration": ("exact", "exact"),
    "BlipForConditionalGeneration": ("refused", ""),
}


def recorded() -> dict[str, Any]:
    file = Path(__file__).parents[2] / "docs" / "language_hosts.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", FEW)
def test_a_few_classes(name: str) -> None:
    found = walk_language.walk(name)["models"][name]
    assert (found["status"], found["decoder"]) == FEW[name], found
    assert bool(found["reason"]) == (found["status"] != "exact")
    assert bool(found["of decoder"]) == (found["decoder"] == "refused")


def test_the_recorded_walk_names_every_class() -> None:
    found = recorded()
    if found["transformers"] != transformers.__version__:
        pytest.skip(f"docs/language_hosts.json was walked with transformers {found['transformers']}")
    assert list(found["models"]) == [name for name, _ in walk_language.classes()]
    assert set(counted(found)) <= {"exact", "refused", "not built"}
    assert all(one["reason"] for one in found["models"].values() if one["status"] != "exact")
    assert all(one["decoder"] in ("exact", "refused") for one in found["models"].values() if one["status"] == "exact")


def test_a_mask_that_hides_tokens_shows_them_to_nobody_but_themselves() -> None:
    there, keep = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[True, True, False, True]])
    expected = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    assert torch.equal(seen(None, there, keep)[0, 0], expected)
    shut = torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min).triu(1)
    shut[..., 0] = shut[..., 0].masked_fill(torch.arange(4) > 0, torch.finfo(torch.float32).min)
    assert torch.equal(seen(shut, there, keep)[0, 0] == 0, expected)


@pytest.mark.slow
def test_every_class() -> None:
    found, before = walk_language.walk(), recorded()
    assert not {name: one["reason"] for name, one in found["models"].items() if one["status"] == "FAILED"}
    assert not {name: one for name, one in found["models"].items() if one["decoder"] == "FAILED"}
    if before["transformers"] != transformers.__version__:
        pytest.skip(f"docs/language_hosts.json was walked with transformers {before['transformers']}")
    assert found["models"] == before["models"]
