"""Walk every model name of timm's plain ViTs: each is exact when nothing is removed, or refused.

    python -m tests.helpers.walk --output docs/families.json

Every name is built with random weights at a small input and with two blocks, narrower where it is wide, as far as its
constructor takes those arguments; its own blocks, norms, embeddings and pooling stay. A name is "exact" when methods
that remove nothing leave the output bit-equal and methods that remove something shorten the tokens of the blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.walk_record import Found, judged, record, versions

MODULES = (
    "vision_transformer",
    "eva",
    "deit",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
    "naflexvit",
    "vitamin",
    "cait",
    "qwen3_vit",
    "beit",
    "vision_transformer_sam",
    "gemma4_vit",
    "deepseek_vit",
)
NOTHING = "tome:r=0+bat:keep=1.0"
SOMETHING = ("tome:r=3", "bat:keep=0.5:sites=[0]", "tosa:keep=0.5:score=own")
ROWS, COLUMNS = 6, 12  # divided by what towers of vision-language models join patches by
WIDE = 256  # channels above which a model is built narrower
HEADS = 3


def names() -> list[str]:
    """Every model name that timm lists in these files."""
    return sorted(name for module in MODULES for name in timm.list_models(module=module))


def patch_of(owner: Any) -> tuple[int, int]:
    """The pixels that one token stands for, (height, width)."""
    embed = getattr(owner, "patch_embed", None)
    if hasattr(embed, "feat_ratio"):
        ratio = embed.feat_ratio()
        return (ratio, ratio) if isinstance(ratio, int) else tuple(ratio)
    rows, columns = getattr(embed or owner.embeds, "patch_size", None) or owner.patch_size
    return rows, columns


def build(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The model called ``name``, as small as its constructor allows, with random weights, in eval mode, and the size
    of its images."""
    shallow: dict[str, Any] = {"depth": 2}
    if name.startswith("samvit"):  # what methods that read the attention want of the blocks where they act
        shallow["global_attn_indexes"] = (0, 1)
    try:
        plan = timm.create_model(name, device="meta", **shallow)  # shapes only, to learn patch size and width
    except AssertionError:  # grouped-query attention lists its key heads block by block: one full block, one grouped
        shallow["num_kv_heads"] = (HEADS, 1)
        plan = timm.create_model(name, device="meta", **shallow, embed_dim=HEADS * 64, num_heads=HEADS)
    owner = getattr(plan, "encoder", plan)
    rows, columns = patch_of(owner)
    size: dict[str, Any] = {"img_size": (ROWS * rows, COLUMNS * columns)}
    narrow: dict[str, Any] = {}
    if owner.embed_dim > WIDE or "num_kv_heads" in shallow:
        heads = getattr(owner.blocks[0], "attn", owner.blocks[0])
        narrow = {"embed_dim": HEADS * getattr(heads, "head_dim", 64), "num_heads": HEADS}
    errors: list[Exception] = []
    for changes in ({**size, **shallow, **narrow}, {**size, **shallow}, {**size, **narrow}, size):
        try:
            return liven(timm.create_model(name, **changes)).eval(), size["img_size"]
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def lengths(model: nn.Module, image: Tensor) -> list[int]:
    """How many tokens every attention call of one run sees, counted at the fused kernel itself."""
    seen: list[int] = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                seen.append(args[1].shape[-2])
            return func(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        model(image)
    return seen


def judge(name: str) -> Found:
    """{"status": "exact", "refused" or "FAILED", "reason": …} of one model name."""
    model, side = build(name)
    image = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = model(image)
    before = lengths(model, image)
    try:
        ts.apply(model, NOTHING)
    except ts.RefusedError as error:
        with torch.no_grad():
            same = torch.equal(model(image), dense)
        return {"status": "refused" if same else "FAILED", "reason": str(error)}
    with torch.no_grad():
        if not torch.equal(model(image), dense):
            return {"status": "FAILED", "reason": f"{NOTHING} changes the output"}
    ts.remove(model)
    for spec in SOMETHING:
        ts.apply(model, spec)
        after = lengths(model, image)
        if not (len(after) == len(before) and sum(after) < sum(before)):
            return {"status": "FAILED", "reason": f"{spec} leaves the blocks' tokens as they were: {before} to {after}"}
        with torch.no_grad():
            reduced = model(image)
        if reduced.shape != dense.shape or not reduced.isfinite().all():
            return {"status": "FAILED", "reason": f"{spec} gives {tuple(reduced.shape)}, or values that are not finite"}
        ts.remove(model)
    with torch.no_grad():
        if not torch.equal(model(image), dense):
            return {"status": "FAILED", "reason": "remove does not give the original back"}
    return {"status": "exact", "reason": ""}


def walk(chosen: Sequence[str]) -> dict[str, Any]:
    """What ``judge`` says of every name, with the versions it was found with."""
    models = judged((name, partial(judge, name)) for name in chosen)
    return {**versions(timm=timm.__version__), "modules": list(MODULES), "models": models}


if __name__ == "__main__":
    sys.exit(record(__doc__, lambda: walk(names())))
