"""What is predicted: the options of the commands that take segmentation and depth."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest
from tokensieve.utils.options import Option

CLASSIFICATION = "classification"
PIXEL_TASKS = ("segmentation", "depth")
PANEL = "Pixel tasks"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """A task and its options; None means as the saved model has it, or the default.

    Attributes:
        task: "classification", "segmentation", "depth", or None for that of the saved model.
        head: "linear", "dpt" or "segmenter"; a saved model has its own.
        ignore_index, reduce_zero_label: see ``Segmentation``.
        max_depth, depth_scale, median_scaling, eigen_crop: see ``Depth``.
        slide: slide windows of the model's size over images whose short side is this many pixels.
        stride: pixels between windows; None is two thirds of the window.
    """

    task: Annotated[
        str | None,
        Option("classification, segmentation or depth. Default: the saved model's, else classification."),
    ] = None
    head: Annotated[str | None, Option("linear, dpt or segmenter. Default: linear.", panel=PANEL)] = None
    ignore_index: Annotated[
        int | None, Option("Mask value of pixels that do not count. Default: 255.", panel=PANEL)
    ] = None
    reduce_zero_label: Annotated[bool, Option("0 in masks does not count, 1 is the first class.", panel=PANEL)] = False
    max_depth: Annotated[float | None, Option("Metres. Default: 10.", panel=PANEL)] = None
    depth_scale: Annotated[
        float | None, Option("Stored values per metre. Default: 1000 for whole numbers, 1 for others.", panel=PANEL)
    ] = None
    median_scaling: Annotated[bool, Option("Scale predictions to the target's median.", panel=PANEL)] = False
    eigen_crop: Annotated[bool, Option("Measure NYU inside Eigen's crop.", panel=PANEL)] = False
    slide: Annotated[
        int | None,
        Option(
            "Slide windows of the model's size over images whose short side is N pixels.",
            min=1,
            metavar="N",
            panel=PANEL,
        ),
    ] = None
    stride: Annotated[int | None, Option("Pixels between windows. Default: two thirds of one.", min=1, panel=PANEL)] = (
        None
    )

    def given(self) -> dict[str, Any]:
        """What is set, apart from the task itself."""
        names = [field.name for field in fields(TaskOptions) if field.name != "task"]
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}

    def check_task(self) -> None:
        """Raise on a task that there is not, or options of another one.

        Raises:
            TokensieveError: names the option.
        """
        known = (CLASSIFICATION, *PIXEL_TASKS)
        if self.task is not None and self.task not in known:
            raise TokensieveError(
                f"unknown task {self.task!r}{nearest(self.task, known)}; known are {', '.join(known)}"
            )
        if self.task == CLASSIFICATION and self.given():
            name = next(iter(self.given())).replace("_", "-")
            raise TokensieveError(f"--{name} is for pixel tasks: give --task {' or '.join(PIXEL_TASKS)}")
