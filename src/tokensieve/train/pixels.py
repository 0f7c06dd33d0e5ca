"""Training a ``PixelModel``: a head on a frozen backbone, and a reduced backbone by the maps of the dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokensieve.families._locate import family_of
from tokensieve.pixels.model import PixelModel
from tokensieve.train.objective import Objective


class FitHead(Objective):
    """The head of a ``PixelModel``, by the loss of its task; the backbone is frozen and runs without gradient.

    Args:
        model: the model, no methods applied.
    """

    model: PixelModel

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        self.model = model
        model.backbone.requires_grad_(False)
        model.head.requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert targets is not None
        with torch.no_grad():
            maps = self.model.maps(images)
        answers = self.model.answer(maps, tuple(images.shape[-2:]))
        loss = self.model.task.loss(answers, targets)
        return loss, {self.model.task.name: loss.detach()}

    def train(self, mode: bool = True) -> FitHead:
        """The head's mode; the backbone always answers as in evaluation."""
        super().train(mode)
        self.model.backbone.eval()
        return self

    def shards(self) -> list[nn.Module]:
        return []  # the backbone is not trained


class RecoverMaps(Objective):
    """A reduced backbone, by the dense one's maps where the head reads them; no labels, and the head is frozen.

    The loss is the mean squared distance of the maps in units of the dense map's variance in its image, averaged over
    the blocks that are read.

    Args:
        model: the model, with methods applied.
        teacher: the same without.
    """

    model: PixelModel

    def __init__(self, model: PixelModel, teacher: PixelModel) -> None:
        super().__init__()
        self.model = model
        model.head.requires_grad_(False)
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: no engine shards, averages or saves it

    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            wanted = self._teacher[0].maps(images)
        distances = [
            ((found - given).square().mean(dim=(1, 2, 3)) / given.var(dim=(1, 2, 3))).mean()
            for found, given in zip(self.model.maps(images), wanted, strict=True)
        ]
        loss = torch.stack(distances).mean()
        return loss, {"maps": loss.detach()}

    def shards(self) -> list[nn.Module]:
        located = family_of(self.model)
        return located.family.blocks(located.owner)

    def to_teacher_device(self, device: torch.device) -> None:
        self._teacher[0].to(device)
