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
ImgSize = Annotated[int | None, typer.Option("--img-size", min=1, help="Image size. Default: the model's.")]
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
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images at a time for accuracy.")]
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
