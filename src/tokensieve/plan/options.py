"""What a plan is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tokensieve.utils.options import Option


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The method whose knob is turned, how fast it shall become, and how that is measured."""

    method: Annotated[
        str,
        Option(
            "NAME[:option=value]…; + composes. The knob of the last one is turned.",
            names=("--method",),
            metavar="SPEC",
        ),
    ]
    target_speedup: Annotated[
        float | None, Option("Dense time over planned time. Default: measure the method as it is.")
    ] = None
    batch_size: Annotated[int, Option("Images at a time.", names=("-b", "--batch-size"), min=1)] = 16
    multiple: Annotated[int | None, Option("Round token counts up to a multiple, 8 or 16 for example.", min=1)] = None
    fewer_sites: Annotated[bool, Option("Also try every second, third or fourth of the sites, in larger steps.")] = (
        False
    )
    rounds: Annotated[int, Option("Timings of each variant.", min=1)] = 5
    save: Annotated[Path | None, Option("Write the planned model, as ts.save does.", metavar="FOLDER")] = None
