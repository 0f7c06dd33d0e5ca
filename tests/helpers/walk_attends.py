"""Whether the blocks of a model attend over the whole image, read from the attention calls of one run.

Every call is seen where torch dispatches it: the fused kernel, or the softmax of an attention written by hand. The
calls that concern an encoder are those with as many queries as keys, gathered by the module that made them and then by
list of blocks (the modules whose names differ in numbers alone). A block reaches a whole image when a query has as many
keys as there are patches, (side / patch)², in an image or in one frame of a clip. A list of blocks keeps its resolution
when no block has fewer tokens, over all its calls, than the patches of a block that reaches a whole image. A model
attends

- "global": in a list of blocks that keeps its resolution every block reaches a whole image;
- "windows": in such a list some blocks do, and the others attend in windows (SAM, ViTDet, Qwen2.5-VL);
- "other": no list of blocks is like that: convolutions, pyramids (Swin, PVT, SegFormer, Hiera), detectors on a
  convolutional backbone, and towers that join patches between their blocks.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.walk_inputs import GRID, field, pair

CLOSED = -1e4  # logits below are those of a mask
FUSED = re.compile(r"_scaled_dot_product_\w*attention\w*")
SOFTMAX = ("_softmax", "_safe_softmax")

# By class: what one run cannot show, and why.
STATED = {
    "dinat/DinatModel": ("other", "a pyramid that attends to neighbourhoods"),
    "dinat/DinatForImageClassification": ("other", "a pyramid that attends to neighbourhoods"),
    "dinat/DinatBackbone": ("other", "a pyramid that attends to neighbourhoods"),
    "groupvit/GroupViTVisionModel": (
        "other",
        "a pyramid: it joins its patches into groups by attention to fewer tokens",
    ),
    "pe_video/PeVideoEncoder": ("global", "its config does not say the patches of the tower of timm inside it"),
    "timm_backbone/TimmBackbone": ("global", "it has the blocks of the model of timm that it is given, here a ViT"),
    "timm_wrapper/TimmWrapperForImageClassification": ("global", "it has the blocks of the model of timm inside it"),
    "timm_wrapper/TimmWrapperModel": ("global", "it has the blocks of the model of timm inside it"),
    "vit_mae/ViTMAEModel": ("global", "its blocks attend over all patches that its mask has left, a quarter of them"),
}


@dataclass(frozen=True)
class Call:
    """One attention call: how many rows times heads, how many queries in each, the most keys that a query reaches."""

    rows: int
    queries: int
    reach: int


class Calls(TorchDispatchMode):
    """The self-attention calls of what runs inside, by the name of the module that made them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, list[Call]] = defaultdict(list)
        self._inside: list[str] = []
        self._hooks = [hook for name, module in model.named_modules() for hook in self._watch(name, module)]

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self._inside.append(name)

        def leave(*_: Any) -> None:
            self._inside.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.partition(".")[0]
        if FUSED.fullmatch(name):
            query, key = args[:2]
            mask = kwargs.get("attn_mask", kwargs.get("attn_bias"))
            self._note(query.shape[:-1], key.shape[-2], mask)
        elif name in SOFTMAX and args[0].dim() > 2 and args[1] in (-1, args[0].dim() - 1):
            self._note(args[0].shape[:-1], args[0].shape[-1], args[0])
        return func(*args, **kwargs)

    def _note(self, queries: torch.Size, keys: int, mask: Tensor | None) -> None:
        if queries[-1] == keys and self._inside:
            closed = torch.zeros(1, keys) if mask is None else ~mask if mask.dtype == torch.bool else mask < CLOSED
            self.seen[self._inside[-1]].append(Call(queries[:-1].numel(), keys, int((closed == 0).sum(-1).max())))


def patches_of(model: Any, inputs: dict[str, Any]) -> int | None:
    """How many patches one image has, or one frame of a clip; None where the config of the model knows no patches."""
    pixels = next(iter(inputs.values()))
    if {"grid_thw", "image_grid_thw", "target_sizes"} & inputs.keys():
        return math.prod(GRID)
    if pixels.dim() == 3:  # already cut into patches
        return int(pixels.shape[1])
    side = field(model.config, "patch_size", "tubelet_size")
    if side is None:
        return None
    rows, columns = pair(side)
    return int(pixels.shape[-2] // rows * (pixels.shape[-1] // columns))


def attends(model: nn.Module, inputs: dict[str, Any]) -> str:
    """ "global", "windows" or "other", by the rule above, from one run of a dense model."""
    patches = patches_of(model, inputs)
    calls = Calls(model)
    with torch.no_grad(), calls:
        model(**inputs)
    lists: dict[str, list[list[Call]]] = defaultdict(list)
    for name, made in calls.seen.items():
        lists[re.sub(r"\d+", "#", name)].append(made)
    found = {kind_of(blocks, patches) for blocks in lists.values()} if patches else set()
    return next((kind for kind in ("windows", "global") if kind in found), "other")


def kind_of(blocks: list[list[Call]], patches: int) -> str:
    """How one list of blocks attends, by the calls that each block made."""
    tokens = [sum(call.rows * call.queries for call in made) for made in blocks]
    whole = [made for made in blocks if min(call.reach for call in made) >= patches]
    needed = [sum(call.rows * (call.queries // patches) * patches for call in made) for made in whole]
    if not whole or min(tokens) < min(needed):
        return "other"
    return "global" if len(whole) == len(blocks) else "windows"
