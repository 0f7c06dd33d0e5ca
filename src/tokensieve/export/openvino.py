"""OpenVINO, converted from the traced program by its own converter."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.export.format import CLASSES, Format, Ports, RunAll
from tokensieve.export.onnx import Onnx


@dataclass(frozen=True)
class OpenVino(Format):
    """An OpenVINO model in float32, ``.xml`` with its weights in ``.bin``; by default input ``images``, output
    ``logits``."""

    name = "openvino"
    title = "OpenVINO"
    suffix = ".xml"
    companions = (".bin",)
    packages = ("openvino",)

    def write(self, program: ExportedProgram, path: Path, ports: Ports = CLASSES) -> None:
        import openvino

        (name,) = program.graph_signature.user_inputs
        node = next(node for node in program.graph.nodes if node.name == name)
        shape = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the converter's own, about its internals
                model = _converted(program, ports)
            model.reshape(shape)
        except TokensieveError:
            raise
        except Exception as error:  # the converter's errors have no common base
            why = str(error).strip().rpartition("\n")[2].removeprefix("-- ")  # its errors end with what they are about
            raise RefusedError(f"the model cannot be converted to OpenVINO: {why}") from error
        model.inputs[0].get_tensor().set_names({ports.input})
        for output, called in zip(model.outputs, ports.outputs, strict=False):
            output.get_tensor().set_names({called})
        openvino.save_model(model, path, compress_to_fp16=False)

    def open_all(self, path: Path) -> RunAll:
        import openvino

        # A processor with bfloat16 units would otherwise round to them, and choose other tokens.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(path, "CPU", options)

        def run(images: Tensor) -> tuple[Tensor, ...]:
            answers = compiled(images.cpu().numpy())
            return tuple(torch.from_numpy(answers[output].copy()) for output in compiled.outputs)

        return run


def _converted(program: ExportedProgram, ports: Ports) -> Any:
    """The program as a model of OpenVINO; where it has several outputs by way of ONNX, since OpenVINO reads loops there
    and none in traced programs."""
    import openvino

    if len(ports.outputs) == 1:
        return openvino.convert_model(program)
    Onnx().require()
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        Onnx().write(program, between, ports)
        return openvino.convert_model(between)
