"""``ts.export``: trace, convert, open again, compare, and only then keep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tokensieve.engine.probe import probe_input
from tokensieve.errors import TokensieveError
from tokensieve.export.aotinductor import AotInductor
from tokensieve.export.check import CANDIDATES, CHECKED, Agreement, compare, random_images, settled
from tokensieve.export.features import FEATURES, Reducer, compare_features, settled_pictures, trace_features
from tokensieve.export.format import Format, Run, RunAll, opened
from tokensieve.export.onnx import Onnx
from tokensieve.export.openvino import OpenVino
from tokensieve.export.place import check_output, placing
from tokensieve.export.torch_program import TRACED_BATCH, TorchProgram, trace
from tokensieve.language.sieved import plan_of
from tokensieve.utils.names import nearest

FORMATS: dict[str, type[Format]] = {form.name: form for form in (TorchProgram, Onnx, OpenVino, AotInductor)}
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it is.
        form: its format.
        agreement: how it compared with the model.
    """

    path: Path
    form: Format
    agreement: Agreement

    @property
    def size(self) -> int:
        """Bytes, those of the files beside it included."""
        return sum(file.stat().st_size for file in self.form.files(self.path))

    def open(self) -> Run:
        """The file as a function from images (B, C, H, W), any B (for features 1), to answers, in its own runtime."""
        return self.form.open(self.path)

    def open_all(self) -> RunAll:
        """The file as a function to all of its outputs: of a vision-language model ``features`` and ``places``."""
        return self.form.open_all(self.path)


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    example: Tensor | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Exported:
    """Write ``model`` to a file that runs without tokensieve, for any batch size.

    The file is opened again in its own runtime and compared with the model on images and batch sizes that it was not
    traced with, and kept only when the answers are the same. Images are compared whose choice of tokens does not hang
    on rounding.

    Of a vision-language model with a method in front of its decoder the file holds tower, projector and method: one
    picture ``pixel_values`` (1, 3, H, W) gives ``features`` (1, K, C), those kept, in order, and ``places`` (1, K)
    int64, where they were. The decoder gets them as precomputed embeddings (docs/serving.md).

    Args:
        model: with methods applied, or dense; float32. It is traced in evaluation mode and left unchanged.
        path: the file: ``.pt2``, ``.onnx`` or ``.xml``.
        format: "torch" (``torch.export``), "onnx", "openvino" (weights in a ``.bin`` beside) or "aotinductor"; default
            by the ending, "torch" for ``.pt2``.
        example: (B, C, H, W) images to compare on, whose C, H and W the file will take. Default: random ones of the
            model's input size.
        opset: of ONNX; default what the exporter takes.
        tolerance: the largest absolute difference of two answers.
        force: replace files that exist.

    Returns:
        What was written, and how it compared; ``.open()`` runs it.

    Raises:
        RefusedError: the model cannot be exported so, or the exported one answers differently; no file is left.
        TokensieveError: a missing package, a file that exists, or arguments that do not fit.

    >>> ts.apply(model, ts.BAT(keep=0.7))
    >>> ts.export_model(model, "model.onnx")
    """
    target = Path(path)
    form = check_request(target, format, opset, force)
    weight = next(model.parameters())
    if weight.dtype != torch.float32:
        raise TokensieveError(f"only float32 models are exported, this one is {weight.dtype}: call model.float() first")
    if example is not None and (example.dim() != 4 or not len(example)):
        raise TokensieveError(f"the example must be images (B, C, H, W), got shape {tuple(example.shape)}")
    if plan_of(model) is not None:
        return _export_features(model, target, form, example, tolerance)
    like = probe_input(model) if example is None else example.to(weight)
    drawn = random_images(TRACED_BATCH + CANDIDATES, like)
    with placing(target) as beside:
        form.write(trace(model, drawn[:TRACED_BATCH]), beside)
        images = settled(model, drawn[TRACED_BATCH:], CHECKED) if example is None else settled(model, like)
        agreement = compare(model, opened(form, form.open, beside), images, tolerance)
    return Exported(target, form, agreement)


def _export_features(
    model: nn.Module, target: Path, form: Format, example: Tensor | None, tolerance: float
) -> Exported:
    reducer = Reducer(model)
    like = reducer.example(model)
    if example is not None:
        if example.shape[1:] != like.shape[1:]:
            raise TokensieveError(
                f"the example must be pictures (B, {', '.join(map(str, like.shape[1:]))}), got {tuple(example.shape)}"
            )
        example = example.to(like)
    with placing(target) as beside:
        form.write(trace_features(reducer, like), beside, FEATURES)
        agreement = compare_features(reducer, form, beside, settled_pictures(reducer, example, like), tolerance)
    return Exported(target, form, agreement)


def check_request(path: Path, format: str | None, opset: int | None, force: bool) -> Format:
    """The format that is asked for, once it is clear that it can be written to ``path``. Arguments as in ``export``.

    Raises:
        TokensieveError: an unknown format, a missing package, or a path that cannot be written.
    """
    if format is None:
        format = next((name for name, form in FORMATS.items() if form.suffix == path.suffix), None)
        if format is None:
            endings = ", ".join(dict.fromkeys(form.suffix for form in FORMATS.values()))
            raise TokensieveError(f"the name of the file must end in one of {endings}, got {str(path)!r}")
    if format not in FORMATS:
        raise TokensieveError(f"unknown format {format!r}{nearest(format, FORMATS)}; known are {', '.join(FORMATS)}")
    if opset is not None and format != Onnx.name:
        raise TokensieveError(f"an opset is for the format onnx alone, got {opset} with {format}")
    form = Onnx(opset) if format == Onnx.name else FORMATS[format]()
    form.require()
    check_output(path, form, force)
    return form
