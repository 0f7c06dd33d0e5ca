"""What timm expects of a classifier that is made of stages: features, intermediates, classifier, checkpointing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stage(nn.Module):
    """Blocks of one resolution, behind what brings the image and the prefix tokens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def run(self, block: nn.Module, *state: Tensor | None) -> Any:
        """A block's answer, computed again in the backward pass where that is switched on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *state, use_reentrant=False)
        return block(*state)


class StagedBackbone(nn.Module, ABC):
    """A hierarchical model in timm's form. Between stages it is an image (B, C, H, W) and P prefix tokens (B, P, C).

    A subclass makes its parts, ``stages`` among them, each of which takes and gives these two, and ends its
    ``__init__`` with ``reset_classifier``.

    Args:
        dims, strides: channels and strides of the stages.
        in_chans: channels of the images.
        prefix: P.
        drop_rate: dropout before the classifier.
    """

    pools: ClassVar[tuple[str, ...]]
    untapped: ClassVar[int] = 0  # first stages whose image is not among the features
    stages: nn.ModuleList
    global_pool: str

    def __init__(
        self, dims: Sequence[int], strides: Sequence[int], in_chans: int, prefix: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.num_prefix_tokens = prefix
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dims[i], "reduction": strides[i], "module": f"stages.{i}"}
            for i in range(self.untapped, len(dims))
        ]
        self.head_drop = nn.Dropout(drop_rate)

    @abstractmethod
    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image (B, C, H, W) and the prefix tokens (B, P, C) that the first stage takes."""

    @abstractmethod
    def normalise(self, image: Tensor, prefix: Tensor) -> Tensor:
        """The tokens (B, P + H·W, C) behind the last norm, prefix first."""

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P + N, C) to (B, C), as ``global_pool`` says, which is not ""."""

    @abstractmethod
    def remove_norms(self) -> None:
        """Leave the last norms out."""

    def all_blocks(self) -> list[nn.Module]:
        """The blocks of all stages in the order they run."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass instead of keeping what they computed."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another number of classes (0 for none), another pooling where one is given."""
        if global_pool is not None and global_pool not in (*self.pools, ""):
            raise ValueError(f"global_pool must be {', '.join(map(repr, self.pools))} or '', got {global_pool!r}")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = next(self.stages.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The image after some of the stages that ``feature_info`` lists, each (B, C, H, W), as timm's models give it.

        Args:
            x: (B, 3, H, W).
            indices: the last so many, or which; None for all.
            norm: whether the last stage's is normalised.
            stop_early: leave out the stages behind the last index.
            output_fmt: "NCHW".
            intermediates_only: without it, ``forward_features(x)`` comes first.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages) - self.untapped, indices)
        stages = self.stages[: last + 1 + self.untapped] if stop_early and intermediates_only else self.stages
        image, prefix = self.embed(x)
        kept: list[Tensor] = []
        for number, stage in enumerate(stages, start=-self.untapped):
            image, prefix = stage(image, prefix)
            if number in take:
                final = norm and number == len(self.feature_info) - 1
                kept.append(self._normalised_image(image, prefix) if final else image)
        return kept if intermediates_only else (self.normalise(image, prefix), kept)

    def _normalised_image(self, image: Tensor, prefix: Tensor) -> Tensor:
        patches = self.normalise(image, prefix)[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(image.shape)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what ``forward_intermediates`` does not need for these indices, which it returns."""
        take, last = feature_take_indices(len(self.stages) - self.untapped, indices)
        shortened = last + 1 + self.untapped < len(self.stages)
        self.stages = self.stages[: last + 1 + self.untapped]
        if prune_norm or shortened:
            self.remove_norms()
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return list(take)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, P + N, C): the prefix tokens, then those of the last stage's image row by row, all normalised."""
        image, prefix = self.embed(x)
        for stage in self.stages:
            image, prefix = stage(image, prefix)
        return self.normalise(image, prefix)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of what ``forward_features`` gives; before the classifier with ``pre_logits``."""
        x = self.head_drop(self.pool(x) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(highest: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of every block of every stage, rising linearly to ``highest``."""
    total = sum(depths)
    rates = iter([highest * number / max(1, total - 1) for number in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
