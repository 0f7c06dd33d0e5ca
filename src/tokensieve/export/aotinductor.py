"""AOTInductor: the program compiled to machine code, in a package that PyTorch loads from Python or C++."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tokensieve.errors import RefusedError
from tokensieve.export.format import CLASSES, Format, Ports, RunAll, reason, several


@dataclass(frozen=True)
class AotInductor(Format):
    """A package of compiled code for the processor or GPU that it was made on; making one needs a C++ compiler."""

    name = "aotinductor"
    title = "AOTInductor"
    suffix = ".pt2"

    def write(self, program: ExportedProgram, path: Path, ports: Ports = CLASSES) -> None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, about its internals
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # no compiler, or one of the compiler's own errors
            raise RefusedError(f"the model cannot be compiled by AOTInductor: {reason(error)}") from error

    def open_all(self, path: Path) -> RunAll:
        return several(torch._inductor.aoti_load_package(str(path)))
