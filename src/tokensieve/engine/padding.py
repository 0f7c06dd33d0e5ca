"""Images that are padded to one length, as the mask says that a block is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.tokens.form import Padded

MASKS = ("attn_mask", "attention_mask")


def mask_in(kwargs: dict[str, Any]) -> Tensor | None:
    """The mask among the arguments of a block, or None."""
    return next((kwargs[name] for name in MASKS if isinstance(kwargs.get(name), Tensor)), None)


def unmasked(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a block whose tokens need no mask."""
    return {name: None if name in MASKS else value for name, value in kwargs.items()}


def forms(mask: Tensor, x: Tensor, prefix: int) -> list[Padded]:
    """The images of a batch ``x`` (B, P + N, C), those with as many patches together; none where nothing is padding.

    Raises:
        RefusedError: the ``mask`` hides more than padding, or all of an image.
    """
    valid = _valid(mask, *x.shape[:2])
    if bool(valid.all()):
        return []
    patches = valid[:, prefix:]
    counts = patches.sum(dim=1)
    if not bool(valid[:, :prefix].all()) or not bool(counts.all()):
        raise RefusedError(_SENTENCE)
    found = []
    for count in counts.unique().tolist():
        images = (counts == count).nonzero().squeeze(1)
        kept = patches[images].nonzero()[:, 1].view(len(images), count)
        found.append(Padded(x.shape, prefix, images, kept))
    return found


def _valid(mask: Tensor, batch: int, length: int) -> Tensor:
    """(B, L) bool, which tokens of each image are no padding, as a ``mask`` (B or 1, 1 or H, 1 or L, L) says."""
    seen = mask
    if mask.is_floating_point():
        seen = mask > torch.finfo(mask.dtype).min / 2
        if bool((mask[seen] != 0).any()):
            raise RefusedError(_SENTENCE)
    elif mask.dtype != torch.bool:
        seen = mask != 0
    if seen.dim() == 2 and seen.shape == (batch, length):
        return seen
    if seen.dim() != 4 or seen.shape[-1] != length or seen.shape[-2] not in (1, length):
        raise RefusedError(_SENTENCE)
    valid = seen.flatten(1, 2).any(dim=1)
    # Whatever padding itself attends to.
    wrong = seen != valid[:, None, None]
    if seen.shape[-2] == length:
        wrong = wrong & valid[:, None, :, None]
    if bool(wrong.any()):
        raise RefusedError(_SENTENCE)
    return valid.expand(batch, length)


_SENTENCE = (
    "a model with reduced tokens takes no attn_mask, attention_mask or is_causal but one that hides padding from all "
    "tokens alike: its tokens are not where another mask expects them; ts.remove(model) gives the dense model back"
)
