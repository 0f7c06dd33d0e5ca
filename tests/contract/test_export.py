"""Reduced models in other runtimes: the same tokens and the same answers, with no scatter in the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import COMPOSED, CONFIGS, DEFAULTS, FACTORIES, images, liven
from tokensieve.export.check import WithTokens, settled
from tokensieve.export.format import Format
from tokensieve.export.onnx import Onnx
from tokensieve.export.openvino import OpenVino
from tokensieve.export.torch_program import trace
from tokensieve.ops.rows import complement, rank_descending, split_top

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

RAGGED = {config for config, methods in CONFIGS.items() if any(method.ragged for method in methods)}
# One composition of each kind is enough here: how methods meet does not depend on which ones they are.
KINDS = {(methods[0].returns, methods[1].returns): config for config, methods in COMPOSED.items()}
STATIC = sorted({*DEFAULTS, *KINDS.values()} - RAGGED)
# The graphs that exporters read are traced in test_compile.py, one of each kind soon and all of them slowly.
FEW = {"tome"}


def soon(few: Collection[str]) -> pytest.MarkDecorator:
    """Every static config; those outside ``few`` only in ``make test-slow``."""
    marked = [pytest.param(config, marks=() if config in few else pytest.mark.slow) for config in STATIC]
    return pytest.mark.parametrize("config", marked)


Outputs = Callable[[Tensor], list[Tensor]]


def reduced(config: str) -> nn.Module:
    """Two blocks, because exporters take seconds for each."""
    model = liven(FACTORIES["timm-vit"]["plain"](depth=2)).eval()
    return ts.apply(model, CONFIGS[config])


def written(module: nn.Module, form: Format, path: Path, example: Tensor) -> Path:
    form.write(trace(module, example), path)
    return path


def onnx_outputs(path: Path) -> Outputs:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(value) for value in session.run(None, {name: x.numpy()})]


def openvino_outputs(path: Path) -> Outputs:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: [torch.from_numpy(value.copy()) for value in compiled(x.numpy()).values()]


def same_tokens_and_answers(model: nn.Module, run: Outputs) -> None:
    """On images and batch sizes that were not traced."""
    whole = settled(model, images(8)[2:])
    assert len(whole) >= 3  # otherwise the images say nothing
    for x in (whole, whole[:1]):
        with torch.no_grad():
            logits, *groups = WithTokens(model)(x)
        answer, *chosen = run(x)
        torch.testing.assert_close(answer, logits, rtol=0, atol=1e-4)
        assert len(chosen) == len(groups)
        events = ts.trace(model, x).events
        assert events and len(groups) == sum(event.group is not None for event in events)
        for theirs, ours in zip(chosen, groups, strict=True):
            assert torch.equal(theirs, ours)


@soon(FEW)
def test_onnx_picks_the_same_tokens_without_a_scatter(config: str, tmp_path: Path) -> None:
    model = reduced(config)
    path = written(WithTokens(model), Onnx(), tmp_path / "model.onnx", images(2))
    graph = onnx.load(path).graph
    assert not [node.op_type for node in graph.node if "Scatter" in node.op_type]
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [0, 3, 64, 80]
    same_tokens_and_answers(model, onnx_outputs(path))


@soon(("tosa",))
def test_openvino_picks_the_same_tokens(config: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = reduced(config)
    path = written(WithTokens(model), OpenVino(), tmp_path / "model.xml", images(2))
    same_tokens_and_answers(model, openvino_outputs(path))


class Ties(nn.Module):
    """Every ordering that methods use, on scores (B, M) that repeat."""

    def forward(self, score: Tensor) -> tuple[Tensor, ...]:
        order = rank_descending(score)
        top, others = split_top(score, 5)
        left = complement(order[:, :4], score.shape[1])
        marked = (score > 0).int().sort(dim=1, stable=True).indices
        return score.amax(dim=1), order, top, others, left, marked, score.max(dim=1).indices, score.argmin(dim=1)


@pytest.mark.parametrize(
    ("form", "outputs"), [(Onnx(), onnx_outputs), (OpenVino(), openvino_outputs)], ids=["onnx", "openvino"]
)
def test_ties_are_broken_as_torch_breaks_them(form: Format, outputs: Callable[[Path], Outputs], tmp_path: Path) -> None:
    pytest.importorskip(form.packages[0])
    run = outputs(written(Ties(), form, tmp_path / f"ties{form.suffix}", torch.randn(2, 40)))
    for batch in (1, 3, 16):
        score = torch.randint(-2, 3, (batch, 40)).float()
        score[:, ::7] = -torch.inf
        for theirs, ours in zip(run(score), Ties()(score), strict=True):
            assert torch.equal(theirs.to(ours.dtype), ours)
