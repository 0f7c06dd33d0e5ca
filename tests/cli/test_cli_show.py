"""``tokensieve show``: pictures and pages, and what it refuses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import tokensieve as ts
from tests.helpers import calling
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions

MODEL = "test_vit"

call, fails = partial(calling.call, "show"), partial(calling.fails, "show")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    file = tmp_path / "photograph.png"
    Image.linear_gradient("L").convert("RGB").save(file)
    return file


@pytest.mark.parametrize("ending", ["png", "html"])
def test_a_picture_of_a_dense_model_with_methods(photograph: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"tokens.{ending}"
    common = (MODEL, photograph, "-m", "topk:keep=0.5,0.7", "--method", "tome:r=3", "--output", output)
    result = call(*common, "--device", "cpu", "--mean", 0.5, "--std", "0.5,0.5,0.5", "--img-size", 96)
    assert result.exit_code == 0, result.output
    assert "written:" in result.stderr and "weights are random" in result.stderr
    if ending == "html":
        page = output.read_text(encoding="utf-8")
        assert all(f"<h2>{spec}</h2>" in page for spec in ("topk:keep=0.5", "topk:keep=0.7", "tome:r=3"))
    else:
        with Image.open(output) as picture:
            picture.verify()
    before = output.read_bytes()
    assert "exists" in fails(*common)
    assert output.read_bytes() == before
    assert call(*common, "--force").exit_code == 0


def test_a_picture_of_a_saved_model(photograph: Path, tmp_path: Path) -> None:
    ts.save(ts.apply(create(ModelOptions(MODEL)), "tome:r=3"), tmp_path / "saved")
    assert call(tmp_path / "saved", photograph, "-o", tmp_path / "tokens.png").exit_code == 0
    assert "has methods already" in fails(tmp_path / "saved", photograph, "-m", "bat", "-o", tmp_path / "other.png")


def test_wrong_input_ends_in_one_sentence(photograph: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "tokens.png")
    (tmp_path / "text.png").write_text("hello")
    common = (MODEL, photograph, *output)
    assert "at least one --method" in fails(*common)
    assert "did you mean 'topk'" in fails(*common, "-m", "TopK")
    assert "must end in .png or .html" in fails(MODEL, photograph, "-m", "topk", "-o", tmp_path / "tokens.jpg")
    assert "does not exist" in fails(MODEL, photograph, "-m", "topk", "-o", tmp_path / "absent" / "tokens.png")
    assert "is not a folder" in fails(MODEL, photograph, "-m", "topk", "-o", photograph / "tokens.png")
    assert "no image" in fails(MODEL, tmp_path / "absent.png", *output, "-m", "topk")
    assert "is a folder" in fails(MODEL, tmp_path, *output, "-m", "topk")
    assert "cannot read" in fails(MODEL, tmp_path / "text.png", *output, "-m", "topk")
    assert "--blocks must be" in fails(*common, "-m", "topk", "--blocks", "one")
    assert "--blocks names 0" in fails(*common, "-m", "topk", "--blocks", 0)
    assert "device 'abacus' is not available" in fails(*common, "-m", "topk", "--device", "abacus")
    assert "one for each channel" in fails(*common, "-m", "topk", "--mean", "0.5,0.5")
    assert "above 0" in fails(*common, "-m", "topk", "--std", 0)
    assert "expected one number" in fails(*common, "-m", "topk", "--img-size", 0)
    assert "cannot read the class map" in fails(*common, "-m", "topk", "--class-map", tmp_path / "absent.txt")
    assert "no family matches" in fails("resnet18", photograph, *output, "-m", "topk")
    assert not (tmp_path / "tokens.png").exists()
