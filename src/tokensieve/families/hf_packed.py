"""transformers' towers of packed images, of Qwen2-VL and its like: all images in one row, rotary positions, windows."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.attention.windows import WindowRows
from tokensieve.families._family import BlockMacs
from tokensieve.families._halves import Halves, heads_of
from tokensieve.families._layout import Layout
from tokensieve.families._modules import refuse_listeners
from tokensieve.families._transformers import TransformersFamily, noise

PACKED = Halves(
    norm1="norm1",
    attention="attn",
    norm2="norm2",
    arguments=("cu_seqlens", "position_embeddings"),
    first=True,
)
# Models with this block: their folder in transformers, and the name of the class.
BLOCKS = {
    "cohere_compass": "CohereCompassVisionBlock",
    "dots3_note": "Dots3NoteVisionBlock",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeVisionBlock",
    "exaone4_5": "Exaone4_5_VisionBlock",
    "glm4v": "Glm4vVisionBlock",
    "glm4v_moe": "Glm4vMoeVisionBlock",
    "glm5_next": "Glm5NextVisionBlock",
    "glm_ocr": "GlmOcrVisionBlock",
    "qwen2_5_omni": "Qwen2_5OmniVisionBlock",
    "qwen2_5_vl": "Qwen2_5_VLVisionBlock",
    "qwen2_vl": "Qwen2VLVisionBlock",
    "qwen3_5": "Qwen3_5VisionBlock",
    "qwen3_5_moe": "Qwen3_5MoeVisionBlock",
    "qwen3_omni_moe": "Qwen3OmniMoeVisionBlock",
    "qwen3_vl": "Qwen3VLVisionBlock",
    "qwen3_vl_moe": "Qwen3VLMoeVisionBlock",
    "qwen4_exp": "Qwen4ExpVisionBlock",
}
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
SIDE = 16  # patches along each side of the image that stands for others where the config names no size


class HfPacked(TransformersFamily):
    """The blocks of towers that take images of any size, packed in one row.

    The attention of a block runs by its parts, image by image or window by window, on whichever tokens are there.
    Behind the last block every patch is back for what joins patches (the merger), in the order in which the model has
    them. Frames of a video attend each to itself, as images do.
    """

    name = "hf-packed"
    description = "transformers Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V, ERNIE 4.5 VL and others that pack images"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"transformers.models.{folder}.modeling_{folder}.{kind}": PACKED for folder, kind in BLOCKS.items()
    }
    packed = True
    in_parts = True
    images: ClassVar[str | None] = "hidden_states"

    def layout(self, owner: nn.Module) -> Layout:
        blocks: list[Any] = self.blocks(owner)
        halves = self.halves(blocks[0])
        return Layout(
            depth=len(blocks),
            dim=getattr(blocks[0], halves.norm1).weight.shape[0],
            heads=heads_of(getattr(blocks[0], halves.attention))[0],
            prefix=0,
            class_token=False,
            grid=(SIDE * SIDE,),
            windowed=frozenset(self.windowed(owner)),
            sized=False,
        )

    def windowed(self, owner: nn.Module) -> Iterable[int]:
        """The numbers of the blocks that attend in windows."""
        full: Any = getattr(owner, "fullatt_block_indexes", None)
        return () if full is None else (number for number in range(len(self.blocks(owner))) if number not in full)

    def example(self, owner: nn.Module) -> dict[str, Any]:
        model: Any = owner
        weight = next(p for p in model.patch_embed.parameters() if p.dim() > 1)
        patches = noise(weight, SIDE * SIDE, weight[0].numel())
        name = list(inspect.signature(type(owner).forward).parameters)[1]
        grid = torch.tensor([[1, SIDE, SIDE]], device=weight.device)
        return {name: patches, "grid_thw": grid}

    def lengths(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
        borders = kwargs.get("cu_seqlens")
        if borders is not None:  # worked out before, maybe of patches that are not a whole picture
            return tuple(borders.diff().tolist())
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        if grid is None:
            return None
        return tuple(rows * columns for frames, rows, columns in grid.tolist() for _ in range(frames))

    def macs(self, block: nn.Module) -> BlockMacs:
        found = super().macs(block)
        routed = sum(routed_macs(getattr(block, name)) for name in self.halves(block).mlp)
        return replace(found, mlp_linear=found.mlp_linear + routed)

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        borders, windows = kwargs["cu_seqlens"], None
        if len(borders) - 1 != kwargs["images"]:
            windows = torch.bucketize(positions, borders[1:].to(positions), right=True)
        angles = kwargs.get("position_embeddings") or ()
        return {"angles": [angle[positions] for angle in angles], "windows": windows}

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        if "angles" not in kwargs:  # the row as the model has it, (T, C) or (1, T, C)
            every = torch.arange(x.shape[-2], device=x.device).unsqueeze(0)
            placed = self.reindex(block, {**kwargs, "images": 1}, every, 0)
            return self.tapped(block, x.view(1, *x.shape[-2:]), tap, **placed).view(x.shape)
        if kwargs["windows"] is not None:
            tap.rows = WindowRows(kwargs["windows"])
        attention = getattr(block, self.halves(block).attention)
        with tap:
            return x + _attend(attention, self.attention_input(block, x), kwargs["angles"])


def _attend(attention: Any, x: Tensor, angles: list[Tensor]) -> Tensor:
    """(B, L, C), the answer of an attention to ``x`` at the places of these ``angles`` (B, L, D), where it has any."""
    refuse_listeners(attention)
    queries, keys, values = (part.unflatten(2, (-1, attention.head_dim)) for part in _projected(attention, x))
    if hasattr(attention, "q_norm"):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    if angles:
        rotate = named(sys.modules[type(attention).__module__], "apply_rotary_pos_emb_vision", "apply_rotary_pos_emb")
        turned = rotate(*(part.flatten(0, 1) for part in (queries, keys, *angles)))  # each as one row of tokens
        queries, keys = (part.view(*x.shape[:2], -1, attention.head_dim) for part in turned)
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    dropout = named(attention, "attention_dropout", "dropout") or 0.0 if attention.training else 0.0
    scale = named(attention, "scaling", "scale")
    out = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scale)
    joined: Tensor = named(attention, "proj", "out_proj", "o_proj")(out.transpose(1, 2).flatten(2))
    return joined


def named(holder: Any, *names: str) -> Any:
    """The first of these attributes that ``holder`` has, or None."""
    return next((getattr(holder, name) for name in names if hasattr(holder, name)), None)


def routed_macs(mlp: Any) -> int:
    """MACs per token of the experts that an MLP chooses among, and of the choice; 0 of a plain one."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        return 0
    weights = sum(weight.numel() for weight in experts.parameters() if weight.dim() == 3)
    chosen: int = weights // mlp.gate.num_experts * mlp.gate.top_k
    return chosen + int(mlp.gate.weight.numel())


def _projected(attention: Any, x: Tensor) -> tuple[Tensor, ...]:
    if hasattr(attention, "qkv"):
        joined = attention.qkv(x)
        widths = (attention.q_dim, attention.kv_dim, attention.kv_dim) if hasattr(attention, "kv_dim") else None
        return joined.split(widths, dim=-1) if widths else joined.chunk(3, dim=-1)  # type: ignore[no-any-return]
    names = next(names for names in PROJECTIONS if hasattr(attention, names[0]))
    return tuple(getattr(attention, name)(x) for name in names)
