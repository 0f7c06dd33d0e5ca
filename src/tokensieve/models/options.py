"""What a model is asked for, and how it shall run: the options of every command that takes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tokensieve.errors import TokensieveError
from tokensieve.utils.options import Option

ZERO_SHOT = "zeroshot"
TEMPLATE = "a photo of a {}."
ImgSize = int | tuple[int, int] | None  # of a square, or (height, width)


def image_size(given: str) -> int | tuple[int, int]:
    """``224``, or ``240,320`` as height and width.

    Raises:
        ValueError: it is something else; says what was expected.
    """
    try:
        numbers = [int(number) for number in given.split(",")]
        if min(numbers) < 1 or len(numbers) > 2:
            raise ValueError
    except ValueError:
        raise ValueError(f"expected one number, or height and width with a comma between, got {given!r}") from None
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """The size of the images, which both a model and its transform are made for."""

    img_size: Annotated[
        ImgSize,
        Option("Image size, or height and width. Default: the model's.", metavar="N[,N]", parser=image_size),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SizeOptions):
    """Which model, with which weights and of which shape; None means the model's own."""

    model: Annotated[
        str,
        Option(
            "A timm model name, hf-hub:owner/model, hf:owner/model of transformers, or a folder written by ts.save or "
            "by transformers.",
            metavar="MODEL",
            argument=True,
        ),
    ] = field(kw_only=False)
    pretrained: Annotated[bool, Option("Load timm's pretrained weights.")] = False
    checkpoint: Annotated[
        str | None, Option("Weights to load: safetensors, or a plain state dict.", metavar="FILE")
    ] = None
    num_classes: Annotated[int | None, Option("Classes of the head. Default: the model's.", min=1)] = None
    in_chans: Annotated[int | None, Option("Channels of an image. Default: the model's.", min=1)] = None


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where models run."""

    device: Annotated[str, Option("cpu, cuda, cuda:1, mps, …")] = "cpu"


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Whether models run under autocast, and to which dtype it casts."""

    amp: Annotated[bool, Option("Run under autocast.")] = False
    amp_dtype: Annotated[str, Option("bfloat16 or float16.")] = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(PrecisionOptions, DeviceOptions):
    """How models run: device, precision, memory format, and eager, compiled or captured in a CUDA graph."""

    model_dtype: Annotated[
        str | None, Option("Cast the model itself: bfloat16, float16. Default: as it is.", metavar="DTYPE")
    ] = None
    channels_last: Annotated[bool, Option("Use the channels-last memory format.")] = False
    torchcompile: Annotated[
        str | None, Option("Compile every model, with inductor for example.", metavar="BACKEND")
    ] = None
    cuda_graph: Annotated[bool, Option("Capture every model in a CUDA graph and time its replay.")] = False


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions:
    """What a model with two towers compares images with: texts that name the classes."""

    classes: Annotated[
        str | None,
        Option(
            "Names of the classes, a line each; where a folder of images is called otherwise, it, a tab and the name.",
            metavar="FILE",
            panel="Zero-shot classification",
        ),
    ] = None
    template: Annotated[
        tuple[str, ...],
        Option(
            f"Text with {{}} for the name; repeatable, a class then has the mean of its texts. Default: {TEMPLATE!r}",
            metavar="TEXT",
            panel="Zero-shot classification",
        ),
    ] = ()

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts, each once."""
        return tuple(dict.fromkeys(self.template or (TEMPLATE,)))


def check_templates(templates: Sequence[str]) -> None:
    """Raise where there is no template, or one has no place for a name.

    Raises:
        TokensieveError: names it.
    """
    if not templates:
        raise TokensieveError(f"there is no template: give one such as {TEMPLATE!r}")
    without = next((template for template in templates if "{}" not in template), None)
    if without is not None:
        raise TokensieveError(f"the template {without!r} has no {{}}, where the name goes: give {TEMPLATE!r} for one")
