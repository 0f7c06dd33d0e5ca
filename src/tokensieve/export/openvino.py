"""OpenVINO, converted from the traced program by its own converter."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokensieve.errors import RefusedError
from tokensieve.export.format import Format, Run


@dataclass(frozen=True)
class OpenVino(Format):
    """An OpenVINO model in float32, ``.xml`` with its weights in ``.bin``; input ``images``, output ``logits``."""

    name = "openvino"
    title = "OpenVINO"
    suffix = ".xml"
    companions = (".bin",)
    packages = ("openvino",)

    def write(self, program: ExportedProgram, path: Path) -> None:
        import openvino

        (name,) = program.graph_signature.user_inputs
        node = next(node for node in program.graph.nodes if node.name == name)
        shape = [-1, *node.meta["val"].shape[1:]]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the converter's own, about its internals
                model = openvino.convert_model(program)
            model.reshape(shape)
        except Exception as error:  # the converter's errors have no common base
            why = str(error).strip().rpartition("\n")[2].removeprefix("-- ")  # its errors end with what they are about
            raise RefusedError(f"the model cannot be converted to OpenVINO: {why}") from error
        model.inputs[0].get_tensor().set_names({"images"})
        model.outputs[0].get_tensor().set_names({"logits"})
        openvino.save_model(model, path, compress_to_fp16=False)

    def open(self, path: Path) -> Run:
        import openvino

        # A processor with bfloat16 units would otherwise round to them, and choose other tokens.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(path, "CPU", options)

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled(images.cpu().numpy())[0].copy())

        return run
