"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tokensieve.utils.options import Option

FORMAT_NAMES = ("torch", "onnx", "openvino", "aotinductor")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written where, in which format, and whether it is timed."""

    output: Annotated[Path, Option("The file: .pt2, .onnx or .xml.", names=("--output", "-o"))]
    method: Annotated[
        str | None,
        Option(
            "NAME[:option=value]…; + composes. A folder from ts.save has its own.",
            metavar="SPEC",
        ),
    ] = None
    format: Annotated[
        str | None,
        Option(f"{', '.join(FORMAT_NAMES)}. Default: by the ending of the file, torch for .pt2."),
    ] = None
    opset: Annotated[int | None, Option("Of ONNX. Default: the exporter's.")] = None
    timing: Annotated[
        bool,
        Option("Time the file beside the dense model in the same format.", names=("--timing/--no-timing",)),
    ] = True
    force: Annotated[bool, Option("Replace the output file.")] = False
