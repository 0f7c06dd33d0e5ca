"""What the tower of a vision-language model says of features, from its attention maps: all of them, in plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.helpers.languages import PIXELS, Inputs
from tokensieve.families._locate import family_of

NAME = "tokensieve_tests_maps"


def maps_of(tower: Any, run: Callable[[], Any]) -> list[list[tuple[Tensor, Tensor]]]:
    """For each block the maps (B, H, L, L) and keys (B, H, L, D) of its attention while ``run`` runs, one pair for each
    call of the kernel: one, or in a tower that packs images one for each image or window."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        logits = query @ key.transpose(2, 3) * scale
        if isinstance(attention_mask, Tensor):
            hidden = attention_mask.dtype == torch.bool
            logits = logits.masked_fill(~attention_mask, -torch.inf) if hidden else logits + attention_mask
        shares = logits.softmax(dim=-1)
        seen.setdefault(id(module), []).append((shares, key))
        return (shares @ value).transpose(1, 2).contiguous(), None

    before = tower.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attend
    tower.config._attn_implementation = NAME
    try:
        run()
    finally:
        tower.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[NAME]
    return [seen[id(part)] for part in tower.modules() if id(part) in seen]


def of_patches(model: Any, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """For each block of the dense ``model``'s tower the importance (T) and the keys (T, D) of all patches, picture by
    picture, in the order in which the tower has them: class attention where there is a class token, else received."""
    located = family_of(model)
    prefix = located.family.layout(located.owner).prefix
    given = {name: inputs[name] for name in PIXELS if name in inputs}
    found = []
    for calls in maps_of(located.owner, lambda: model.model.get_image_features(**given)):
        importance, keys = [], []
        for shares, key in calls:
            mean = shares.mean(dim=1)
            scores = mean[:, 0] if prefix else mean.mean(dim=1)
            importance.append(scores[:, prefix:].flatten())
            keys.append(key.mean(dim=1)[:, prefix:].flatten(0, 1))
        found.append((torch.cat(importance), torch.cat(keys)))
    return found


def groups_in_windows(rows: int, columns: int, side: int) -> list[int]:
    """The places of merged groups, row by row, as a tower has them that lays them out by windows of side × side."""
    return [
        row * columns + column
        for top in range(0, rows, side)
        for left in range(0, columns, side)
        for row in range(top, min(top + side, rows))
        for column in range(left, min(left + side, columns))
    ]


def squares(rows: int, columns: int, side: int) -> list[list[int]]:
    """For each square of side × side patches, row by row, which of rows × columns they are."""
    return [
        [(top + down) * columns + left + right for down in range(side) for right in range(side)]
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
