"""A model of pixels: a timm backbone and a head on the maps that its blocks give back."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.models.built import BuiltModel
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.heads import Head, build_head
from tokensieve.pixels.segmentation import Segmentation
from tokensieve.pixels.task import PixelJudge, Task, from_dict

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Segmentation, Depth)}


class PixelModel(BuiltModel):
    """Images (B, C, H, W) to logits (B, K, H, W), or to depth (B, 1, H, W) in metres.

    The backbone is read through its own ``forward_intermediates``: reduced by ``ts.apply`` it gives every patch back
    there, so head and answer keep their shapes.

    Args:
        backbone: a timm model without classifier.
        head: reads it.
        task: what is predicted.

    Attributes:
        taps: the 0-based blocks that are read.
    """

    saved_as = "dense"  # as files have had it from the start

    def __init__(self, backbone: nn.Module, head: Head, task: Task) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.task = task

    @property
    def taps(self) -> tuple[int, ...]:
        return self.head.taps

    # What timm's helpers, and ours for classifiers, read from a model.
    @property
    def patch_embed(self) -> Any:
        """The backbone's."""
        return self.backbone.patch_embed

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's."""
        return self.backbone.pretrained_cfg  # type: ignore[return-value]

    @property
    def num_classes(self) -> int:
        """Classes of a segmentation; 0 for depth."""
        return self.task.channels if isinstance(self.task, Segmentation) else 0

    def to_config(self) -> dict[str, Any]:
        """Task and head, as written to a saved model."""
        return {"task": self.task.to_dict(), "head": self.head.name}

    def judge(self) -> PixelJudge:
        """How ``measure`` compares models of this kind."""
        return PixelJudge(self.task)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps (B, C, h, w) that the head reads, behind the backbone's last norm, every patch in place.

        Raises:
            TokensieveError: images of another size than a backbone of fixed size takes.
        """
        embed: Any = self.patch_embed
        size, wanted = tuple(images.shape[-2:]), getattr(embed, "img_size", None)
        if wanted is not None and getattr(embed, "strict_img_size", True) and size != tuple(wanted):
            raise TokensieveError(
                f"the backbone takes images of {wanted[0]} × {wanted[1]} pixels, got {size[0]} × {size[1]}: resize "
                "them, slide over them (tokensieve.pixels.sliding), or create the model with that img_size"
            )
        backbone: Any = self.backbone
        maps: list[Tensor] = backbone.forward_intermediates(
            images, indices=list(self.taps), norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, K, H, W)."""
        return self.answer(self.maps(images), tuple(images.shape[-2:]))

    def answer(self, maps: list[Tensor], size: tuple[int, ...]) -> Tensor:
        """What the head makes of the maps, at ``size``: pixels behind the last whole patch repeat their neighbours."""
        outputs = self.head(maps)
        patch = getattr(self.patch_embed, "patch_size", None) or (1, 1)
        rows, columns = (
            min(cells * side, wanted) for cells, side, wanted in zip(maps[-1].shape[-2:], patch, size, strict=True)
        )
        outputs = F.interpolate(outputs, size=(rows, columns), mode="bilinear", align_corners=False)
        if (rows, columns) != size:
            outputs = F.pad(outputs, (0, size[1] - columns, 0, size[0] - rows), mode="replicate")
        return self.task.activate(outputs)


def pixel_model(backbone: nn.Module, task: Task, head: str = "linear") -> PixelModel:
    """A model of pixels with a fresh head; ``backbone`` loses its classifier, in place.

    Args:
        backbone: a timm model of a known family, with methods applied or without.
        task: what to predict.
        head: "linear", "dpt" or "segmenter".

    Raises:
        RefusedError: no family matches.
        TokensieveError: no such head, or a backbone that gives no intermediate maps.
    """
    located = family_of(backbone)
    if not hasattr(backbone, "forward_intermediates"):
        raise TokensieveError(f"{type(backbone).__name__} has no forward_intermediates: a pixel head cannot read it")
    reset: Any = getattr(backbone, "reset_classifier", None)
    if reset is not None:
        reset(0)
    layout = located.family.layout(located.owner)
    return PixelModel(backbone, build_head(head, layout.dim, layout.depth, task.channels), task).eval()


def from_config(backbone: nn.Module, config: dict[str, Any]) -> PixelModel:
    """The model of pixels that a saved config names, its head fresh.

    Raises:
        TokensieveError: a task, an option or a head that this version does not have.
    """
    try:
        kind, options, head = TASKS[config["task"]["name"]], config["task"]["options"], config["head"]
    except (KeyError, TypeError) as error:
        raise TokensieveError(
            f"the saved model is damaged, or of a task this version does not have: {error}"
        ) from error
    return pixel_model(backbone, from_dict(kind, options), head)
