"""How a model has the tokens of a state where that is not (B, P + N, C): as a map, or all images in one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.ops.moving import behind_prefix


class Form(ABC):
    """A model's own way to have the tokens of a batch, without prefix tokens.

    Attributes:
        shape: of the tensor that the model has.
    """

    shape: torch.Size

    @property
    def told(self) -> dict[str, Any]:
        """What a family is told of it where it runs the parts of a block, beside the block's own arguments."""
        return {}

    def places(self, positions: Tensor) -> Tensor:
        """(B, M), the ``positions`` (B, M) of patches in their images as that family is told them."""
        return positions

    @abstractmethod
    def taken(self, x: Tensor) -> Tensor:
        """(B, N, C) from ``x`` as the model has it."""

    @abstractmethod
    def given(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, N, C) as the model has them."""


@dataclass(frozen=True)
class Map(Form):
    """Maps of tokens, (B, H, W, C), or with their channels along another axis.

    Attributes:
        shape: of the maps.
        channels: the axis of the channels.
    """

    shape: torch.Size
    channels: int = 3

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of the patches, (H, W)."""
        return tuple(side for axis, side in enumerate(self.shape) if axis not in (0, self.channels))

    @property
    def told(self) -> dict[str, Any]:
        return {"grid": self.grid}

    def taken(self, x: Tensor) -> Tensor:
        return x.movedim(self.channels, -1).flatten(1, -2)

    def given(self, tokens: Tensor) -> Tensor:
        maps: Tensor = tokens.unflatten(1, self.grid)  # type: ignore[no-untyped-call]
        return maps.movedim(-1, self.channels)


@dataclass(frozen=True)
class Tubes(Form):
    """Clips whose tokens of one place lie one behind the other, frame by frame: each place is one wide token.

    Attributes:
        shape: (B, P + N · frames, C).
        prefix: P, the prefix tokens, of which there is one for all frames.
        frames: T, of the clip.
    """

    shape: torch.Size
    prefix: int
    frames: int

    def taken(self, x: Tensor) -> Tensor:
        batch = len(x)
        front = x[:, : self.prefix].repeat(1, 1, self.frames)
        return torch.cat([front, x[:, self.prefix :].reshape(batch, -1, front.shape[2])], dim=1)

    def given(self, tokens: Tensor) -> Tensor:
        width = self.shape[2]
        places = tokens[:, self.prefix :].reshape(len(tokens), -1, width)
        return torch.cat([tokens[:, : self.prefix, :width], places], dim=1)


class Share(Form):
    """Images of one size in a tensor in which there are others as well."""

    @abstractmethod
    def put(self, whole: Tensor, tokens: Tensor) -> None:
        """Write ``tokens`` (B, P + N, C) to their places in ``whole``, as the model has it."""


@dataclass(frozen=True)
class InRow(Share):
    """Images of one size in a row (T, C), in which there may be others as well.

    Attributes:
        shape: (T, C).
        starts: where each image begins.
        length: N, the patches of each.
        images: how many there are in the row.
    """

    shape: torch.Size
    starts: tuple[int, ...]
    length: int
    images: int

    @property
    def told(self) -> dict[str, Any]:
        return {"images": self.images}

    def places(self, positions: Tensor) -> Tensor:
        return positions + torch.tensor(self.starts, device=positions.device).unsqueeze(1)

    def taken(self, x: Tensor) -> Tensor:
        if len(self.starts) == self.images:
            return x.reshape(len(self.starts), -1, self.shape[-1])
        row = x.flatten(0, -2)
        return torch.stack([row[start : start + self.length] for start in self.starts])

    def given(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(self.shape)

    def put(self, whole: Tensor, tokens: Tensor) -> None:
        row = whole.view(-1, whole.shape[-1])
        for start, image in zip(self.starts, tokens.unbind(0), strict=True):
            row[start : start + len(image)] = image


@dataclass(frozen=True, eq=False)
class Padded(Share):
    """Images with as many patches in a batch (B, P + N, C) in which all are padded to one length.

    Attributes:
        shape: of the batch.
        prefix: P.
        images: (B',) int64, which of the batch they are.
        kept: (B', N') int64, the patches that are no padding.
    """

    shape: torch.Size
    prefix: int
    images: Tensor
    kept: Tensor

    def of_images(self, value: Any) -> Any:
        """What a block is given for every image, for these alone: a tensor (B, L, …); all else as it is."""
        if isinstance(value, tuple):
            return tuple(map(self.of_images, value))
        batched = isinstance(value, Tensor) and value.dim() > 2 and len(value) == self.shape[0]
        return value[self.images] if batched else value

    def places(self, positions: Tensor) -> Tensor:
        return self.kept.gather(1, positions)

    def taken(self, x: Tensor) -> Tensor:
        places = behind_prefix(self.kept, self.prefix)
        return x[self.images.unsqueeze(1), places]

    def given(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("what is padding has a value of its own: tokens.several.Several holds it")

    def put(self, whole: Tensor, tokens: Tensor) -> None:
        whole[self.images.unsqueeze(1), behind_prefix(self.kept, self.prefix)] = tokens
