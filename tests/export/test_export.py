"""``ts.export``: what is written, what is refused, and that nothing wrong is left behind."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.export import run as exporting
from tokensieve.export.check import settled
from tokensieve.export.format import CLASSES, Ports, Run
from tokensieve.export.onnx import Onnx
from tokensieve.export.run import FORMATS, Exported
from tokensieve.export.speed import beside_dense
from tokensieve.export.torch_program import TorchProgram
from tokensieve.families._layout import Layout
from tokensieve.methods._method import Method
from tokensieve.methods._view import View
from tokensieve.tokens.decision import Assignment, ragged

SUFFIX = {name: form.suffix for name, form in FORMATS.items()}


def small() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    nn.init.normal_(model.head.weight, std=0.2)
    return model


def reduced() -> nn.Module:
    return ts.apply(small(), "evit:keep=0.5:sites=[0,1]")


@pytest.mark.parametrize(
    "name", [*(n for n in FORMATS if n != "aotinductor"), pytest.param("aotinductor", marks=pytest.mark.slow)]
)
def test_what_is_written_runs_by_itself_for_any_batch(name: str, tmp_path: Path) -> None:
    for package in FORMATS[name].packages:
        pytest.importorskip(package)
    model = reduced().train()
    exported = ts.export_model(model, tmp_path / f"model{SUFFIX[name]}", format=name)
    assert model.training and ts.spell(ts.applied(model)) == "evit:keep=0.5:sites=[0,1]"
    files = sorted(tmp_path.iterdir())
    assert files == sorted(exported.form.files(exported.path))
    assert exported.size == sum(file.stat().st_size for file in files) > 100_000
    assert exported.agreement.images == 3 and exported.agreement.same_top1
    assert exported.agreement.difference <= 1e-4
    run = exported.open()
    model.eval()
    x = settled(model, torch.randn(7, 3, 64, 64))
    assert len(x) > 3
    for batch in (x, x[:2], x[:1]):
        with torch.inference_mode():
            torch.testing.assert_close(run(batch), model(batch), rtol=0, atol=1e-4)


def test_the_ending_names_the_format_and_the_example_the_size(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", dynamic_img_size=True, img_size=64, num_classes=5).eval()
    ts.apply(model, "evit:keep=0.5")
    example = torch.randn(2, 3, 96, 64)
    exported = ts.export_model(model, tmp_path / "model.pt2", example=example)
    assert isinstance(exported.form, TorchProgram)
    assert exported.agreement.images == 2
    with torch.inference_mode():
        torch.testing.assert_close(exported.open()(example), model(example), rtol=0, atol=1e-5)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(ts.TokensieveError, match=r"model\.pt2 exists.*force"):
        ts.export_model(reduced(), path)
    assert path.read_text() == "mine"
    ts.export_model(reduced(), path, force=True)
    assert path.stat().st_size > 100_000
    pytest.importorskip("openvino")
    (tmp_path / "model.bin").write_text("mine")
    with pytest.raises(ts.TokensieveError, match=r"model\.bin exists"):
        ts.export_model(reduced(), tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_text() == "mine"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The reduced model, exported once for all tests that only read it."""
    return ts.export_model(reduced(), tmp_path_factory.mktemp("written") / "model.pt2")


@dataclass(frozen=True)
class Wrong(TorchProgram):
    """Writes a file that was made before, and opens it with an error in it."""

    error: str = ""
    written: Path = Path()

    def write(self, program: Any, path: Path, ports: Ports = CLASSES) -> None:
        shutil.copy(self.written, path)

    def open(self, path: Path) -> Run:
        right = super().open(path)
        if self.error == "opening":
            raise RuntimeError("no such operator\nand much more")

        def run(images: Tensor) -> Tensor:
            answer = right(images)
            if self.error == "value":
                return answer + 2e-4
            if self.error == "nan":
                return answer * torch.nan
            if self.error == "shape":
                return answer[:, :-1]
            if self.error == "one batch size":
                return answer + (len(images) == 1)
            raise RuntimeError("cannot run this")

        return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("value", r"differs from the model by 0\.0002 where 0\.0001 is allowed, on a batch of 3"),
        ("nan", "differs from the model by nan"),
        ("shape", r"with shape \(3, 9\) where the model gives \(3, 10\)"),
        ("one batch size", "on a batch of 1"),
        ("running", "does not run on a batch of 3: cannot run this"),
        ("opening", "cannot open what was exported: no such operator; nothing"),
    ],
)
def test_a_failed_check_leaves_what_was_there(
    error: str, message: str, written: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "torch", partial(Wrong, error, written.path))
    monkeypatch.setattr(exporting, "trace", lambda model, images: None)
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(ts.RefusedError, match=message):
        ts.export_model(reduced(), path, format="torch", force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "mine"


@dataclass(frozen=True, kw_only=True)
class Brightest(Method):
    """Keeps another number of tokens in every image."""

    ragged = True
    name = "brightest-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def assign(self, view: View) -> Assignment:
        return ragged(view.x.mean(dim=2) >= view.x.mean(dim=(1, 2)).unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class Undecided(Method):
    """Reads a value to decide, which no graph can."""

    name = "undecided-of-the-tests"

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches - 1

    def assign(self, view: View) -> Assignment:
        order = view.x.mean(dim=2).argsort(dim=1, descending=bool(view.x[0, 0, 0] > 0))
        return Assignment(keep=order[:, :-1], dropped=order[:, -1:])


def test_methods_that_are_no_graph_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ts.RefusedError, match="brightest-of-the-tests cannot be exported: it keeps a different number"):
        ts.export_model(ts.apply(small(), Brightest()), tmp_path / "model.pt2")
    with pytest.raises(ts.RefusedError, match=r"undecided-of-the-tests cannot be exported by torch\.export: .+"):
        ts.export_model(ts.apply(small(), Undecided()), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.foo", {}, r"must end in one of \.pt2, \.onnx, \.xml, got '.*model\.foo'"),
        ("model.pt2", {"format": "onnx"}, r"format onnx must end in \.onnx"),
        ("model.onnx", {"format": "onxx"}, "unknown format 'onxx', did you mean 'onnx'"),
        ("model.onnx", {"opset": 9}, "opset must be from 18 to [0-9]+, got 9"),
        ("model.onnx", {"opset": 999}, "opset must be from 18 to [0-9]+, got 999"),
        ("model.pt2", {"opset": 18}, "for the format onnx alone, got 18 with torch"),
        ("absent/model.pt2", {}, "absent does not exist"),
        ("model.pt2", {"example": torch.zeros(3, 64, 64)}, r"images \(B, C, H, W\), got shape \(3, 64, 64\)"),
        ("model.pt2", {"tolerance": -1.0}, "differs from the model by"),
    ],
)
def test_wrong_input_is_named(path: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ts.TokensieveError, match=message):
        ts.export_model(reduced(), tmp_path / path, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_images_that_say_nothing_are_refused(tmp_path: Path) -> None:
    model = reduced()
    with torch.no_grad():
        model.pos_embed.zero_()
    grey = torch.zeros(2, 3, 64, 64)  # with no positions every token is the same
    with pytest.raises(ts.TokensieveError, match="in all of 2 images the choice of tokens hangs on rounding"):
        ts.export_model(model, tmp_path / "model.pt2", example=grey)
    assert not list(tmp_path.iterdir())
    mixed = torch.cat([grey, torch.randn(1, 3, 64, 64)])
    assert torch.equal(settled(model, mixed), mixed[2:])


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ts.TokensieveError, match=r"only float32 models are exported, this one is torch\.bfloat16"):
        ts.export_model(reduced().bfloat16(), tmp_path / "model.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "openvino"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "openvino" if package == "openvino" else "onnx"
    if name == "onnx":
        for other in Onnx.packages:
            pytest.importorskip(other)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ts.TokensieveError, match=rf"{name} needs the package {package}: pip install .*tokensieve\[export\]"
    ):
        ts.export_model(reduced(), tmp_path / f"model{SUFFIX[name]}")


def test_speed_is_compared_within_each_engine(written: Exported) -> None:
    model = reduced()
    (small_batch, large_batch) = beside_dense(model, written, torch.randn(4, 3, 64, 64), (1, 4), rounds=2)
    assert (small_batch.batch, large_batch.batch) == (1, 4)
    assert small_batch.F == large_batch.F > 1
    for timing in (*large_batch.eager, *large_batch.exported):
        assert timing.batch == 4 and len(timing.seconds) == 2
    assert large_batch.kept == pytest.approx(large_batch.S_exported / large_batch.S_eager)
    assert [file.name for file in written.path.parent.iterdir()] == ["model.pt2"]
