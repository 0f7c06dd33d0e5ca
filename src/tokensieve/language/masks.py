"""Attention masks of an uncut sequence, for what is left of it.

A window or a chunk counts tokens of the uncut sequence, as positions do: what a query sees is what it would see in the
dense model if the tokens that left were hidden. Flash attention takes no mask and counts tokens that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.language.record import Cut, Record, of_tokens

WINDOWED = ("sliding_attention", "chunked_attention", "hybrid_sliding")
LOCAL = ("linear_attention", "conv")  # their masks are of the tokens of a call, whatever came before


def window_of(config: Any) -> int | None:
    """How many tokens the windowed layers of a decoder see; None where it has none."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not set(kinds) & set(WINDOWED):
        return None
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    return None


def flash(config: Any) -> bool:
    """Whether the attention of a decoder takes no mask over pairs of tokens."""
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def uncut_masks(config: Any, inputs: Mapping[str, Any]) -> Any:
    """The attention mask of what a decoder is called with; that of each kind of layer where more than order counts.

    A decoder that is given (B, U) makes its own masks from the places of the tokens that it sees. Where distances count
    in them, or sequences lie packed in one row, they are made here, of the uncut sequence.

    Args:
        config: of the decoder.
        inputs: what it is called with, by name, before the cut.
    """
    mask, positions, cache = inputs.get("attention_mask"), inputs.get("position_ids"), inputs.get("cache")
    ready = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2)
    if ready or flash(config):
        return mask
    if isinstance(positions, Tensor) and positions.dim() == 3:
        positions = positions[0] if len(positions) == 4 else None  # the first of four axes counts text
    packed = mask is None and cache is None and positions is not None and bool((positions.diff(dim=-1) != 1).any())
    if window_of(config) is None and not packed:
        return mask
    from transformers.masking_utils import create_masks_for_generate

    return create_masks_for_generate(
        config=config,
        inputs_embeds=inputs["inputs_embeds"],
        attention_mask=mask,
        cache=cache,
        position_ids=positions,
    )


def cut_masks(mask: Any, cut: Cut, record: Record, cache: Any, config: Any) -> Any:
    """An attention mask of the uncut sequence for what is left.

    Args:
        mask: (B, U) of a whole sequence, (B, 1, L, U) with a row for each query, None, or these by the kind of layer.
        cut: which queries stay.
        record: which columns the first layer of the cache has behind this call.
        cache: before this call, or None.
        config: of the decoder.

    Raises:
        RefusedError: it is of another kind.
    """
    if not isinstance(mask, Mapping):
        columns = _held(record, cut, cache, 0)
        if mask is None:
            # Without a cache, positions with gaps would be taken for packed sequences where no mask is given.
            return (columns >= 0).long() if cache is None or bool((columns < 0).any()) else None
        return _cut_mask(mask, cut, record, columns)
    kinds = list(getattr(config, "layer_types", None) or ())
    return {
        kind: _of_kind(
            kind, one, cut, record, _held(record, cut, cache, kinds.index(kind) if kind in kinds else 0), config
        )
        for kind, one in mask.items()
    }


def _of_kind(kind: str, mask: Any, cut: Cut, record: Record, columns: Tensor, config: Any) -> Any:
    """A mask that goes to the layers of one kind as it is."""
    if kind in LOCAL:
        stays = ~cut.padding
        if isinstance(mask, Tensor):
            stays &= cut.take(mask).bool()
        return None if bool(stays.all()) else stays
    hidden = columns < 0
    if mask is not None:
        return _cut_mask(mask, cut, record, columns)
    if not bool(hidden.any()):
        return None
    if flash(config):
        return ~hidden
    return causal_mask(columns, cut)


def _held(record: Record, cut: Cut, cache: Any, layer: int) -> Tensor:
    """(B, P + M) int64: the columns that a layer sees, which of a window are the last ones."""
    new = cut.index.shape[1]
    past = record.columns.shape[1] - new
    layers = getattr(cache, "layers", [])
    if layer < len(layers) and getattr(layers[layer], "is_sliding", False):
        past = min(past, int(layers[layer].sliding_window) - 1)
    return record.columns[:, record.columns.shape[1] - past - new :]


def _cut_mask(mask: Any, cut: Cut, record: Record, columns: Tensor) -> Tensor:
    mask = checked_mask(mask)
    if mask.shape[-1] != record.length:
        raise RefusedError(
            f"the attention mask has {mask.shape[-1]} columns where the uncut sequence has {record.length} tokens: "
            "give a mask for the whole sequence, images included"
        )
    return narrowed(mask, cut.index, columns.clamp(min=0), columns < 0, cut)


def checked_mask(mask: Any) -> Tensor:
    """``mask``, which must be one over columns, or over pairs of queries and columns.

    Raises:
        RefusedError: it is of another kind.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise RefusedError(
            f"a decoder that lost tokens takes an attention mask (B, L) or (B, 1, L, L), got {type(mask).__name__}: "
            "use sdpa or eager attention"
        )
    return mask


def narrowed(mask: Tensor, queries: Tensor, where: Tensor, hidden: Tensor, cut: Cut) -> Tensor:
    """A mask (B or 1, P) or (B or 1, 1, L, P) of some queries and columns.

    Args:
        mask: as above.
        queries: (B, M) int64: which of the L.
        where: (B, N) int64: which of the P.
        hidden: (B, N) bool: those of the N that nobody sees.
        cut: which of the M queries are padding.
    """
    mask = mask.expand(len(where), *mask.shape[1:])
    if mask.dim() == 2:
        return mask.gather(1, where).masked_fill(hidden, 0)
    rows = of_tokens(mask.transpose(0, 1), queries, 2).transpose(0, 1)
    seen = rows.gather(3, where[:, None, None].expand(*rows.shape[:3], -1))
    shut: float = False if seen.dtype == torch.bool else torch.finfo(seen.dtype).min
    return _own(seen.masked_fill(hidden[:, None, None], shut), cut)


def causal_mask(columns: Tensor, cut: Cut) -> Tensor:
    """(B, 1, M, P + M) bool: each of the M queries of a call sees what is no padding before it, and itself."""
    rows, total = cut.index.shape[1], columns.shape[1]
    place = torch.arange(total, device=columns.device)
    causal = place <= place[total - rows :].unsqueeze(1)
    return _own((causal & (columns >= 0)[:, None]).unsqueeze(1), cut)


def _own(mask: Tensor, cut: Cut) -> Tensor:
    """``mask`` (B, 1, M, P + M) where a padded query sees itself, so that its softmax is a number."""
    rows, total = mask.shape[2:]
    own = torch.zeros_like(mask, dtype=torch.bool)
    place = torch.arange(rows, device=own.device)
    own[:, :, place, place + total - rows] = cut.padding[:, None]
    if mask.dtype == torch.bool:
        return mask | own
    return mask.masked_fill(own, 0)
