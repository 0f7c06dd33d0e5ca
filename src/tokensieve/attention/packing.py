"""Images of different lengths side by side without padding: what a block runs on behind a ragged method.

Norms, linear layers and activations treat token by token, so the tokens of all images stand in one row, (1, T, C).
Methods and probes see the images padded to one length, (B, L, C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.attention.signals import voters_of

WORTH = 0.97  # of the slots, from which on packing saves less than it costs


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch are.

    Attributes:
        index: (T,) the slots that hold a token, counted through the batch.
        lengths: tokens of each of the B images; T is their sum.
        padded: L, slots of each image.
    """

    index: Tensor
    lengths: tuple[int, ...]
    padded: int

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, C) to (1, T, C)."""
        return x.flatten(0, 1).index_select(0, self.index).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, T, …) to (B, L, …), zero in the slots without a token."""
        slots = packed.new_zeros(len(self.lengths) * self.padded, *packed.shape[2:])
        return slots.index_copy(0, self.index, packed.squeeze(0)).view(-1, self.padded, *packed.shape[2:])

    def unpack_heads(self, packed: Tensor) -> Tensor:
        """(1, H, T, D) to (B, H, L, D)."""
        return self.unpack(packed.transpose(1, 2)).transpose(1, 2)

    def attend(
        self,
        kernel: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
        parts: tuple[Tensor, Tensor, Tensor],
        bias: Tensor | None,
    ) -> Tensor:
        """Let every image attend to itself, (1, H, T, D), by a ``kernel`` for queries, keys, values and bias.

        Image by image, without padding or mask.

        Args:
            kernel: attention of one image.
            parts: queries, keys and values, (1, H, T, D) each.
            bias: (B, 1, 1, L) of the keys where it says more than which slots are empty, else None.
        """
        keys = None if bias is None else bias.flatten().index_select(0, self.index)
        outputs, start = [], 0
        for length in self.lengths:
            image = slice(start, start + length)
            query, key, value = (part[:, :, image] for part in parts)
            outputs.append(kernel(query, key, value, None if keys is None else keys[None, None, None, image]))
            start += length
        return torch.cat(outputs, dim=2)


def packing_of(alive: Tensor, prefix: int) -> Packing | None:
    """How a batch with ``prefix`` tokens before the slots ``alive`` (B, M) packs; None where that saves nothing.

    None on a GPU too, where one padded call is faster than many, and in graphs, whose shapes cannot depend on the data.
    """
    if not alive.is_cpu or torch.compiler.is_compiling():
        return None
    valid = voters_of(alive, prefix)
    assert valid is not None
    index = valid.flatten().nonzero().squeeze(1)
    if len(index) > WORTH * valid.numel():
        return None
    return Packing(index, tuple(valid.sum(dim=1).tolist()), valid.shape[1])
