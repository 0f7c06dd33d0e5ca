"""Training a head on a frozen dense backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokensieve.tasks.model import DenseModel
from tokensieve.train.objective import Objective


class FitHead(Objective):
    """The head of a dense model, by the loss of its task; the backbone is frozen and runs without gradient.

    Args:
        model: the dense model, no methods applied.
    """

    model: DenseModel

    def __init__(self, model: DenseModel) -> None:
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
