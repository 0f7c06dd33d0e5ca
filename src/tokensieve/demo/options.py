"""What the demo is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tokensieve.measure.options import OverwriteOptions
from tokensieve.utils.options import Option


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OverwriteOptions):
    """Which model on how many images, and where the figures go."""

    pretrained: Annotated[
        str | None, Option("A timm model with weights from the hub, on bundled photographs, instead.")
    ] = None
    output: Annotated[Path, Option("Folder for table, plot and pictures.", names=("--output", "-o"))] = Path(
        "demo-output"
    )
    images: Annotated[int, Option("Held-out digits to measure accuracy on.")] = 500
    questions: Annotated[
        int, Option("Held-out questions to the question model; 0 leaves it out, as --pretrained does.", min=0)
    ] = 120
    rounds: Annotated[int, Option("Timings of each model.", min=1)] = 7
    timing_seconds: Annotated[
        float, Option("Seconds that timing may take; rounds that do not fit are left out.", min=0)
    ] = 60.0
