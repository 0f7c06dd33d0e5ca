"""Options that several verbs share, named as in timm's own scripts."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any

import typer


def channels(given: str) -> tuple[float, ...]:
    """``0.5`` or ``0.485,0.456,0.406`` as numbers."""
    try:
        numbers = tuple(float(number) for number in given.split(","))
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers with commas between, such as 0.485,0.456,0.406, got {given!r}"
        ) from None


def image_size(given: str) -> int | tuple[int, int]:
    """``224``, or ``240,320`` as height and width."""
    try:
        numbers = [int(number) for number in str(given).split(",")]
        if min(numbers) < 1 or len(numbers) > 2:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"expected one number, or height and width with a comma between, got {given!r}"
        ) from None
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A timm model name, hf-hub:owner/model, hf:owner/model of transformers, or a folder written by ts.save or "
        "by transformers.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "-m",
        metavar="SPEC",
        help="NAME\\[:option=value\\[,value…]]…: commas sweep, + composes, brackets make a list; "
        "'all' is every method that needs no training. Repeatable.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", "--data-dir", metavar="FOLDER", help="Images, one sub-folder a class; or a data set's root."
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset", metavar="NAME", help="timm data set: hfds/…, hfids/…, wds/…, torch/…; empty for a folder."
    ),
]
Split = Annotated[str, typer.Option("--split", help="Split of the data set.")]
ClassMap = Annotated[
    str | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        help="Class names in the order of the model's answers. Default: class_map.txt in the data folder or above it.",
    ),
]
ImgSize = Annotated[
    Any,
    typer.Option(
        "--img-size", metavar="N[,N]", parser=image_size, help="Image size, or height and width. Default: the model's."
    ),
]
CropPct = Annotated[
    float | None, typer.Option("--crop-pct", help="Share of the image the crop takes. Default: the model's.")
]
Interpolation = Annotated[str | None, typer.Option("--interpolation", help="Resampling. Default: the model's.")]
Mean = Annotated[
    Any,  # tuple[float, ...] | None, of which typer would make an option that takes several words
    typer.Option(
        "--mean",
        metavar="M[,M,M]",
        parser=channels,
        help="Normalisation mean, one for all channels or one for each. Default: the model's.",
    ),
]
Std = Annotated[
    Any,
    typer.Option(
        "--std", metavar="S[,S,S]", parser=channels, help="Normalisation deviation, as --mean. Default: the model's."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("-b", "--batch-size", min=1, help="Images at a time for accuracy. Default: 64, of pixel tasks 8."),
]
Workers = Annotated[int, typer.Option("-j", "--workers", min=0, help="Processes that read images.")]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", min=1, help="Classes of the head. Default: the model's.")
]
InChans = Annotated[int | None, typer.Option("--in-chans", min=1, help="Channels of an image. Default: the model's.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use this many images, spread evenly over the data set.")
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load timm's pretrained weights.")]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="FILE", help="Weights to load: safetensors, or a plain state dict."),
]
Macs = Annotated[
    list[float] | None,
    typer.Option(
        "--macs",
        metavar="SHARE",
        help="Turn the knob (keep or r) of every method until it costs this share of the dense MACs. Repeatable.",
    ),
]
TASK_PANEL = "Pixel tasks"
Task = Annotated[
    str | None,
    typer.Option(
        "--task", help="classification, segmentation or depth. Default: the saved model's, else classification."
    ),
]
Head = Annotated[
    str | None,
    typer.Option("--head", help="linear, dpt or segmenter. Default: linear.", rich_help_panel=TASK_PANEL),
]
IgnoreIndex = Annotated[
    int | None,
    typer.Option(
        "--ignore-index", help="Mask value of pixels that do not count. Default: 255.", rich_help_panel=TASK_PANEL
    ),
]
ReduceZeroLabel = Annotated[
    bool,
    typer.Option(
        "--reduce-zero-label", help="0 in masks does not count, 1 is the first class.", rich_help_panel=TASK_PANEL
    ),
]
MaxDepth = Annotated[float | None, typer.Option("--max-depth", help="Metres. Default: 10.", rich_help_panel=TASK_PANEL)]
DepthScale = Annotated[
    float | None,
    typer.Option(
        "--depth-scale",
        help="Stored values per metre. Default: 1000 for whole numbers, 1 for others.",
        rich_help_panel=TASK_PANEL,
    ),
]
MedianScaling = Annotated[
    bool,
    typer.Option("--median-scaling", help="Scale predictions to the target's median.", rich_help_panel=TASK_PANEL),
]
EigenCrop = Annotated[
    bool, typer.Option("--eigen-crop", help="Measure NYU inside Eigen's crop.", rich_help_panel=TASK_PANEL)
]
Slide = Annotated[
    int | None,
    typer.Option(
        "--slide",
        min=1,
        metavar="N",
        help="Slide windows of the model's size over images whose short side is N pixels.",
        rich_help_panel=TASK_PANEL,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride", min=1, help="Pixels between windows. Default: two thirds of one.", rich_help_panel=TASK_PANEL
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, …")]
Amp = Annotated[bool, typer.Option("--amp", help="Run under autocast.")]
AmpDtype = Annotated[str, typer.Option("--amp-dtype", help="bfloat16 or float16.")]
ModelDtype = Annotated[
    str | None,
    typer.Option("--model-dtype", metavar="DTYPE", help="Cast the model itself: bfloat16, float16. Default: as it is."),
]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Use the channels-last memory format.")]
TorchCompile = Annotated[
    str | None,
    typer.Option("--torchcompile", metavar="BACKEND", help="Compile every model, with inductor for example."),
]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="Capture every model in a CUDA graph and time its replay.")
]
ResultsFile = Annotated[
    str | None,
    typer.Option("--results-file", metavar="JSON", help="Where the rows go; CSV and plot are put beside it."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the results file; what it has is not measured again.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show a traceback when something fails.")]

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
