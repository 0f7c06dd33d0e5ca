"""How the tokens of a batch lie where the layers of a block run: padded to one length, or all images in one row.

Norms, linear layers and activations treat token by token, so the tokens of images of different lengths may stand side
by side, (1, T, C), as ``cu_seqlens`` cuts them. Methods and probes see the images padded to one length, (B, L, C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from tokensieve.attention.signals import voters_of

WORTH = 0.97  # of the slots, from which on packing saves less than it costs


class Rows:
    """Padded rows: layers run on (B, L, C) as it is."""

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, C) as the layers take it."""
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """(B, L, …) from what the layers gave."""
        return x

    def unpack_heads(self, x: Tensor) -> Tensor:
        """(B, H, L, D) from the queries, keys or values of the layers."""
        return x

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Let every image attend to itself.

        Args:
            kernel: attention of queries, keys and values (·, H, L, D) with a bias (·, 1, 1, L) of the keys or None.
            query, key, value: as the layers gave them.
            bias: (B, 1, 1, L), or None.
            options: handed on to the ``kernel``.
        """
        return kernel(query, key, value, bias, **options)


PADDED = Rows()


@dataclass(frozen=True)
class Packing(Rows):
    """Packed rows: the tokens of all images one behind the other, without the slots that hold none.

    Attributes:
        index: (T,) the slots that hold a token, counted through the batch.
        cu_seqlens: B + 1 numbers, where each image begins in the row, and T.
        padded: L, slots of each image.
        sized: whether the bias of the keys says more than which slots are empty.
    """

    index: Tensor
    cu_seqlens: tuple[int, ...]
    padded: int
    sized: bool = True

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, C) to (1, T, C)."""
        return x.flatten(0, 1).index_select(0, self.index).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """(1, T, …) to (B, L, …), zero in the slots without a token."""
        slots = x.new_zeros((len(self.cu_seqlens) - 1) * self.padded, *x.shape[2:])
        return slots.index_copy(0, self.index, x.squeeze(0)).view(-1, self.padded, *x.shape[2:])

    def unpack_heads(self, x: Tensor) -> Tensor:
        """(1, H, T, D) to (B, H, L, D)."""
        return self.unpack(x.transpose(1, 2)).transpose(1, 2)

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Let every image attend to itself, (1, H, T, D): image by image, without padding or mask."""
        keys = bias.flatten().index_select(0, self.index) if bias is not None and self.sized else None
        outputs = []
        for start, end in pairwise(self.cu_seqlens):
            image = slice(start, end)
            parts = (part[:, :, image] for part in (query, key, value))
            outputs.append(kernel(*parts, None if keys is None else keys[None, None, None, image], **options))
        return torch.cat(outputs, dim=2)


def rows_of(alive: Tensor | None, prefix: int, sized: bool = True) -> Rows:
    """How a batch with ``prefix`` tokens before the slots ``alive`` (B, M) lies best.

    Packed where that saves anything; padded on a GPU, where one padded call is faster than many, and in graphs, whose
    shapes cannot depend on the data.
    """
    if alive is None or not alive.is_cpu or torch.compiler.is_compiling():
        return PADDED
    valid = voters_of(alive, prefix)
    assert valid is not None
    index = valid.flatten().nonzero().squeeze(1)
    if len(index) > WORTH * valid.numel():
        return PADDED
    return Packing(index, tuple(accumulate(valid.sum(dim=1).tolist(), initial=0)), valid.shape[1], sized)
