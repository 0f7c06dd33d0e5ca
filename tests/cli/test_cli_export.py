"""The verb export, with right and with wrong input."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

import tokensieve as ts
from tests.helpers import calling

call, fails = partial(calling.call, "export"), partial(calling.fails, "export")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a method, written by ``ts.save``."""
    torch.manual_seed(0)
    arguments = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    ts.apply(model, "evit:keep=0.5:sites=[0]")
    return ts.save(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.slow
def test_a_model_by_name_is_exported_and_timed(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    output = tmp_path / "model.onnx"
    result = call("test_vit", "--method", "evit:keep=0.5", "-o", output, "--opset", 18, "--speed-batch-size", 2,
                  "--rounds", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "yes, 3 images" in result.stdout
    assert "S in ONNX" in result.stdout and "kept" in result.stdout
    assert "the weights are random" in result.stderr and str(output) in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    import onnx

    assert onnx.load(output).opset_import[0].version == 18


def test_a_saved_model_is_exported_with_its_methods(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.pt2"
    result = call(saved, "-o", output, "--no-timing")
    assert result.exit_code == 0, result.output
    assert "evit:keep=0.5:sites=[0]" in result.stdout and "kept" not in result.stdout
    assert "random" not in result.stderr
    model, x = ts.load(saved).eval(), torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(output).module()(x), model(x))
    before = output.read_bytes()
    assert "exists: give another name, or force=True (--force)" in fails(saved, "-o", output)
    assert output.read_bytes() == before
    assert call(saved, "-o", output, "--no-timing", "--force").exit_code == 0


def test_wrong_input_ends_in_one_sentence(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ("-o", tmp_path / "model.pt2")
    assert "no method given" in fails("test_vit", *output)
    assert "has evit:keep=0.5:sites=[0] applied already" in fails(saved, *output, "--method", "tome:r=2")
    assert "did you mean 'tome'" in fails("test_vit", *output, "--method", "tom:r=3")
    assert "names 2 variants" in fails("test_vit", *output, "--method", "tome:r=2,3")
    assert "did you mean 'deit_tiny_patch16_224'" in fails("deit_tiny_patch16_244", *output, "--method", "evit")
    assert "did you mean 'onnx'" in fails("test_vit", *output, "--method", "evit", "--format", "onxx")
    assert "must end in .onnx" in fails("test_vit", *output, "--method", "evit", "--format", "onnx")
    assert "must end in one of" in fails("test_vit", "-o", tmp_path / "model", "--method", "evit")
    assert "for the format onnx alone" in fails("test_vit", *output, "--method", "evit", "--opset", 18)
    assert "does not exist" in fails("test_vit", "-o", tmp_path / "absent" / "model.pt2", "--method", "evit")
    assert "is not a file" in fails("test_vit", *output, "--method", "evit", "--checkpoint", tmp_path / "absent.pth")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'tokensieve[export]'" in fails("test_vit", "-o", tmp_path / "m.xml", "--method", "evit")
    assert not list(tmp_path.iterdir())
