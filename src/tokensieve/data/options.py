"""Where images are and how they are prepared: the options of every command that reads some, named as in timm."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Annotated

from tokensieve.models.options import SizeOptions
from tokensieve.utils.options import Option

BATCH_SIZE, PIXELS_BATCH_SIZE = 64, 8  # of classifiers, and of pixel tasks, whose answers are as large as images


def channels(given: str) -> tuple[float, ...]:
    """``0.5`` or ``0.485,0.456,0.406`` as numbers.

    Raises:
        ValueError: it is something else; says what was expected.
    """
    try:
        numbers = tuple(float(number) for number in given.split(","))
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise ValueError(f"expected numbers with commas between, such as 0.485,0.456,0.406, got {given!r}") from None
    return numbers


@dataclass(frozen=True, kw_only=True)
class TransformOptions(SizeOptions):
    """How images are prepared; None means as they were when the model was trained."""

    crop_pct: Annotated[float | None, Option("Share of the image the crop takes. Default: the model's.")] = None
    interpolation: Annotated[str | None, Option("Resampling. Default: the model's.")] = None
    mean: Annotated[
        tuple[float, ...] | None,
        Option(
            "Normalisation mean, one for all channels or one for each. Default: the model's.",
            metavar="M[,M,M]",
            parser=channels,
        ),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        Option("Normalisation deviation, as --mean. Default: the model's.", metavar="S[,S,S]", parser=channels),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SourceOptions(TransformOptions):
    """Which images of which kind of source, whose place is named elsewhere.

    A split "" takes a folder as it is, whatever it holds.
    """

    dataset: Annotated[
        str, Option("timm data set: hfds/…, hfids/…, wds/…, torch/…; empty for a folder.", metavar="NAME")
    ] = ""
    split: Annotated[str, Option("Split of the data set.")] = "validation"
    class_map: Annotated[
        str | None,
        Option(
            "Class names in the order of the model's answers. Default: class_map.txt in the data folder or above it.",
            metavar="FILE",
        ),
    ] = None
    limit: Annotated[int | None, Option("Use this many images, spread evenly over the data set.", min=1)] = None
    workers: Annotated[int, Option("Processes that read images.", names=("-j", "--workers"), min=0)] = min(
        4, os.cpu_count() or 1
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    """Images to measure on."""

    data: Annotated[
        str | None,
        Option(
            "Images, one sub-folder a class; or a data set's root; of --task answer a folder with questions.jsonl. "
            "Rotation in EXIF is not followed, as in timm.",
            names=("--data", "--data-dir"),
            metavar="FOLDER",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Option(
            "Images at a time for accuracy. Default: 64, of pixel tasks and answers 8.",
            names=("-b", "--batch-size"),
            min=1,
        ),
    ] = None
