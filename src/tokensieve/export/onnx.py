"""ONNX through ``torch.onnx``, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.export.format import CLASSES, Format, Ports, RunAll, reason

OLDEST_OPSET = 18  # what torch.onnx writes in; older ones are only reached by a conversion that may fail


@dataclass(frozen=True)
class Onnx(Format):
    """An ONNX model, by default with the input ``images`` and the output ``logits``.

    Attributes:
        opset: version of ONNX's operators; None for the exporter's default.
    """

    opset: int | None = None

    name = "onnx"
    title = "ONNX"
    suffix = ".onnx"
    companions = (".onnx.data",)  # the weights of models beyond 2 GB
    packages = ("onnx", "onnxscript", "onnxruntime")

    def require(self) -> None:
        super().require()
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.opset is not None and not OLDEST_OPSET <= self.opset <= newest:
            raise TokensieveError(f"the opset must be from {OLDEST_OPSET} to {newest}, got {self.opset}")

    def write(self, program: ExportedProgram, path: Path, ports: Ports = CLASSES) -> None:
        try:
            with torch.no_grad(), warnings.catch_warnings():  # under autograd a learned key bias would not convert
                warnings.simplefilter("ignore")  # the exporter's own, about its internals
                converted = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    input_names=[ports.input],
                    output_names=list(ports.outputs),
                    opset_version=self.opset,
                    custom_translation_table=_sorts(),
                )
        except Exception as error:  # the exporter's errors have no common base
            raise RefusedError(f"the model cannot be converted to ONNX: {reason(error)}") from error
        assert converted is not None
        written = converted.model.opset_imports[""]
        if self.opset not in (None, written):
            raise RefusedError(f"the model cannot be written in opset {self.opset}, only in {written}: leave opset out")
        converted.save(path)

    def open_all(self, path: Path) -> RunAll:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what fails is raised as well
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(images: Tensor) -> tuple[Tensor, ...]:
            return tuple(map(torch.from_numpy, session.run(None, {name: images.cpu().numpy()})))

        return run


def _sorts() -> dict[Any, Any]:
    """Stable sorts, which torch.onnx does not translate. ONNX's TopK puts equal values in the order of their index."""
    from onnxscript import opset18

    op: Any = opset18  # its types do not know that these functions are traced

    def sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    def argsort(values: Any, dim: int = -1, descending: bool = False) -> Any:
        return sort(values, dim=dim, descending=descending)[1]

    def stable_argsort(values: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
        return sort(values, dim=dim, descending=descending)[1]

    aten = torch.ops.aten
    return {aten.sort.stable: sort, aten.argsort.default: argsort, aten.argsort.stable: stable_argsort}
