"""torch.export: tracing a model into one program with a dynamic batch, and its ``.pt2`` file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokensieve.engine.apply import applied
from tokensieve.engine.probe import evaluating
from tokensieve.errors import RefusedError
from tokensieve.export.format import CLASSES, Format, Ports, RunAll, reason, several
from tokensieve.methods._spec import spell

TRACED_BATCH = 2  # a dimension of one would be taken for a constant


def trace(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The model as one graph, in evaluation mode, for images (B, C, H, W) of any B.

    Args:
        model: a model, with methods applied or dense.
        images: (2, C, H, W) to trace with; C, H and W become constants.

    Raises:
        RefusedError: the model cannot be one graph with fixed shapes; says why.
    """
    for method in applied(model):
        if method.ragged:
            raise RefusedError(
                f"{method.name} cannot be exported: it keeps a different number of tokens in every image, and an "
                "exported graph has one shape for all; use a method that keeps the same number in each"
            )
    batch = torch.export.Dim("batch", min=1)
    try:
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its internals
            return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever the model's or a method's code raises while it is traced
        raise RefusedError(f"{_what(model)} cannot be exported by torch.export: {reason(error)}") from error


def _what(model: nn.Module) -> str:
    methods = applied(model)
    return type(model).__name__ if not methods else spell(methods)


@dataclass(frozen=True)
class TorchProgram(Format):
    """A ``torch.export`` program: runs in PyTorch, and is what other exporters start from."""

    name = "torch"
    title = "torch.export"
    suffix = ".pt2"

    def write(self, program: ExportedProgram, path: Path, ports: Ports = CLASSES) -> None:
        torch.export.save(program, path)

    def open_all(self, path: Path) -> RunAll:
        return several(torch.export.load(path).module())
