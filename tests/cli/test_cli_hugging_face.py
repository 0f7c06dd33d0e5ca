"""The verbs on a classifier of transformers, saved with save_pretrained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.calling import call

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` with three classes, and ``images`` of them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hugging-face")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=64, num_labels=3
    )
    transformers.ViTForImageClassification(config).save_pretrained(root / "model")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / "model")
    for label in ("a", "b", "c"):
        (root / "images" / label).mkdir(parents=True)
        pixels = torch.randint(0, 256, (80, 70, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / "images" / label / "0.png")
    return root


def test_eval_and_bench(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "images", "--split", "", "-j", 0, "--method", "tome:r=3")
    result = call("eval", place / "model", *data)
    assert result.exit_code == 0, result.output
    assert "tome:r=3" in result.stdout and "random" not in result.stderr
    file = tmp_path / "r.json"
    result = call("bench", place / "model", *data, "--rounds", 1, "--speed-batch-size", 1, "--results-file", file)
    assert result.exit_code == 0, result.output
    dense, reduced = json.loads(file.read_text())["rows"]
    assert reduced["gmacs"] < dense["gmacs"] and reduced["images"] == 3
    assert "the weights are random" in call("eval", f"hf-config:{place / 'model'}", *data).stderr


def test_plan_writes_a_model_that_eval_takes(place: Path, tmp_path: Path) -> None:
    common = ("--method", "tome:r=3", "-b", 1, "--rounds", 1)
    result = call("plan", place / "model", *common, "--save", tmp_path / "planned")
    assert result.exit_code == 0, result.output
    assert "tome:r=3" in result.stdout
    result = call("eval", tmp_path / "planned", "--data", place / "images", "--split", "", "-j", 0)
    assert result.exit_code == 0 and "tome:r=3" in result.stdout, result.output


def test_show(place: Path, tmp_path: Path) -> None:
    picture = place / "images" / "a" / "0.png"
    result = call(
        "show", place / "model", picture, "--method", "bat:keep=0.5:sites=[1]", "--output", tmp_path / "s.png"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s.png").exists()


def test_wrong_names_end_in_one_sentence(place: Path) -> None:
    for name in ("hf:owner/name", "hf:", f"hf:{place}"):
        result = call("plan", name, "--method", "tome:r=3")
        assert result.exit_code == 2 and "Traceback" not in result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_families_are_listed() -> None:
    result = call("families")
    assert all(name in result.stdout for name in ("hf-vit", "hf-dinov2", "hf-dpt"))
