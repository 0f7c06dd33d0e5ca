"""Exported models beside the model they were made from: the same classes and the same tokens on images, and speed.

python -m benchmarks export deit_tiny --checkpoint F --data FOLDER --files DIR

The dense model and every method are exported in every format into DIR; the files run on images spread evenly over the
data set, where the class of every image and the tokens chosen at every site are compared with PyTorch's; then all files
of an engine are timed interleaved. Dense models of the same engine are what S is measured over.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cell, grid
from benchmarks.session import Session, common_options
from benchmarks.subject import prepare
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.engine.apply import is_applied
from tokensieve.errors import TokensieveError
from tokensieve.export.check import WithTokens, settled
from tokensieve.export.format import Format
from tokensieve.export.run import FORMATS, export_model
from tokensieve.export.torch_program import TRACED_BATCH, trace
from tokensieve.measure import speed
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import DENSE
from tokensieve.measure.speed import Timing

METHODS = ("bat", "tosa:score=own", "tome:r=13", "evit:keep=0.7")
TOLERANCE = 1e-4


def options(parser: argparse.ArgumentParser) -> None:
    """What to export and where to."""
    parser.add_argument("model")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights, default random")
    parser.add_argument("--files", type=Path, required=True, metavar="DIR", help="folder for the exported files")
    parser.add_argument("--method", action="append", help=f"default {', '.join(METHODS)}; repeatable")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="default torch, onnx, openvino")
    parser.add_argument("--batch", action="append", type=int, help="images per call, default 1 and 16; repeatable")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--limit", type=int, default=200, help="images to compare answers on")
    common_options(parser)


def run(given: argparse.Namespace) -> int:
    """Measure a cell for each batch size."""
    formats = [FORMATS[name]() for name in given.format or ("torch", "onnx", "openvino")]
    exports = Exports(given.checkpoint, given.files, formats, given.limit)
    where = ([given.model], [given.img_size], given.batch or [1, 16], ["fp32"], ["eager"], given.method or METHODS)
    cells = grid(*where, kind="export", rounds=given.rounds or 10)
    return Session.of(given, {"export": exports.measure}).run(cells)


class Exports:
    """Measures cells of the kind "export"; answers are compared once, whatever the batch sizes.

    Args:
        checkpoint: weights; None for random ones.
        folder: of the exported files.
        formats: what to export to.
        limit: images to compare answers on.
    """

    def __init__(self, checkpoint: str | None, folder: Path, formats: Sequence[Format], limit: int) -> None:
        self.checkpoint, self.folder, self.formats, self.limit = checkpoint, folder, formats, limit
        self.parity: dict[tuple[str, str], dict[str, Any]] = {}

    def measure(self, cell: Cell, device: str, data: str | None, progress: Progress) -> dict[str, Any]:
        """The record of a cell. See ``subject.prepare`` for the arguments and errors."""
        subject = prepare(cell, device, data, self.checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        models = {variant.name: variant.model for variant in subject.all}
        if not self.parity:
            batches = self._images(subject.dense, cell.setting.img_size, data)
            progress.start("exporting and comparing answers", len(models) * len(self.formats))
            for name, model in models.items():
                for form in self.formats:
                    self.parity[name, form.name] = self._parity(name, model, form, batches)
                    progress.advance()
        progress.start("timing PyTorch and the exported files", len(self.formats) + 1)
        ours = _timed(models, subject.x, cell, progress)
        rows = []
        for form in self.formats:
            files = {name: form.open(self._file(name, form)) for name in models}
            theirs = _timed(files, subject.x, cell, progress)
            for variant in subject.all:
                name, gain = variant.name, subject.base.total / variant.report.total
                row = {"variant": name, "format": form.name, "F": gain, "seconds": list(theirs[name].seconds)}
                row |= {"S_over_F": ours[name].speedup(ours[DENSE]) / gain}
                row |= {"exported_S_over_F": theirs[name].speedup(theirs[DENSE]) / gain}
                row |= {"noisy": speed.noisy(theirs[name]) or speed.noisy(ours[name])}
                rows.append(row | self.parity[name, form.name])
        return subject.told | {"rows": rows}

    def _file(self, name: str, form: Format) -> Path:
        return self.folder / f"{name.replace(':', '-').replace('=', '')}-{form.name}{form.suffix}"

    def _images(self, dense: nn.Module, size: int, data: str | None) -> list[Tensor]:
        if data is None:
            return list(torch.randn(self.limit, 3, size, size).split(16))
        arguments = DataOptions(data=data, img_size=size, limit=self.limit, batch_size=16, workers=2)
        return [images for images, _ in open_images(arguments, dense)]

    def _parity(self, name: str, model: nn.Module, form: Format, batches: Sequence[Tensor]) -> dict[str, Any]:
        """Export the model, run the file on every image, and compare with PyTorch's answers and tokens.

        Images whose tokens move when pixels change by 1e-5 are undecided: two runtimes may differ and both be right.
        """
        path = self._file(name, form)
        exported = export_model(model, path, format=form.name, force=True)
        run = exported.open()
        with torch.inference_mode():
            expected = _outputs([WithTokens(model) if is_applied(model) else model] * len(batches), batches)
            logits = torch.cat([run(x).clone() for x in batches])
        difference = (logits - expected[0]).abs().amax(dim=1)
        same = torch.ones(len(logits), dtype=torch.bool)
        if is_applied(model):
            with tempfile.TemporaryDirectory() as folder:
                tokens = Path(folder) / path.name
                form.write(trace(WithTokens(model).eval(), batches[0][:TRACED_BATCH]), tokens)
                for theirs, ours in zip(_all_outputs(form, tokens, batches)[1:], expected[1:], strict=True):
                    same &= (theirs == ours).all(dim=1)
        return {
            "images": len(logits),
            "same_top1": int((logits.argmax(1) == expected[0].argmax(1)).sum()),
            "within_tolerance": int((difference <= TOLERANCE).sum()),
            "largest_difference": difference.max().item(),
            "same_tokens": same.double().mean().item(),
            "undecided": sum(len(x) - _settled(model, x) for x in batches),
            "megabytes": exported.size / 1e6,
            "scatters": _scatters(form, path),
        }


def _timed(runs: dict[str, Any], x: Tensor, cell: Cell, progress: Progress) -> dict[str, Timing]:
    timed = speed.measure(runs, x, rounds=cell.rounds, warmup=cell.warmup)
    progress.advance()
    return timed


def _settled(model: nn.Module, x: Tensor) -> int:
    """Images of a batch whose tokens do not hang on rounding."""
    try:
        return len(settled(model, x))
    except TokensieveError:
        return 0


def _outputs(runs: Sequence[Any], batches: Sequence[Tensor]) -> list[Tensor]:
    """Every output of a model over all images."""
    answers = [run(x) for run, x in zip(runs, batches, strict=True)]
    return [torch.cat(parts) for parts in zip(*(a if isinstance(a, tuple) else (a,) for a in answers), strict=True)]


def _all_outputs(form: Format, path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    """Every output of a file that has several."""
    run: Any
    if form.name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})  # noqa: E731
    elif form.name == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        run = lambda x: [value.copy() for value in compiled(x.numpy()).values()]  # noqa: E731
    else:
        run = form.open(path)
    with torch.inference_mode():
        return _outputs([lambda x: tuple(torch.as_tensor(value) for value in run(x))] * len(batches), batches)


def _scatters(form: Format, path: Path) -> int:
    """Nodes of a file that scatter; 0 for formats that have no graph to look into."""
    kinds: list[str] = []
    if form.name == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load(path).graph.node]
    elif form.name == "openvino":
        import openvino

        kinds = [node.get_type_name() for node in openvino.Core().read_model(path).get_ops()]
    elif form.name == "torch":
        kinds = [str(node.target) for node in torch.export.load(path).graph.nodes if node.op == "call_function"]
    return sum("scatter" in kind.lower() or "index_put" in kind for kind in kinds)
