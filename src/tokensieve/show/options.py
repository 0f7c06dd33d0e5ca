"""What a picture is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tokensieve.utils.options import Option


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The images, the blocks that are shown, and where the picture goes."""

    images: Annotated[tuple[Path, ...], Option("Image files.", metavar="IMAGE", argument=True)]
    output: Annotated[
        Path, Option("Where to write: one picture (.png) or one page (.html).", names=("--output", "-o"))
    ] = Path("tokens.png")
    question: Annotated[
        tuple[str, ...],
        Option(
            "What a vision-language model is asked about the images; repeatable, to see what each lets stay.",
            names=("--question", "-q"),
            metavar="TEXT",
            panel="Questions about images",
        ),
    ] = ()
    blocks: Annotated[
        str | None, Option("Blocks to show, such as 3,6,9. Default: up to six sites.", metavar="N[,N]…")
    ] = None
    class_map: Annotated[Path | None, Option("Class names in the order of the model's answers.", metavar="FILE")] = None
