"""transformers' towers of packed images that name their parts as CLIP does, have no rotary positions or take clips."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.attention.windows import WindowRows
from tokensieve.families._halves import Halves, heads_of
from tokensieve.families._layout import Layout
from tokensieve.families._transformers import embeddings_of
from tokensieve.families.hf_clip import CLIP
from tokensieve.families.hf_packed import PACKED, SIDE, HfPacked, _attend

ROW = replace(CLIP, arguments=("cu_seqlens", "position_embeddings"))
MASKED = replace(CLIP, arguments=("attention_mask",))
# Models with these blocks: their folder in transformers, the name of the class, and its parts.
BLOCKS: Mapping[str, tuple[str, Halves]] = {
    "cosmos3_edge": ("Cosmos3EdgeVisionEncoderLayer", ROW),
    "glm_image": ("GlmImageVisionBlock", PACKED),
    "hunyuan_vl": ("HunYuanVLVisionBlock", MASKED),
    "hy_v4_vl": ("HYV4VLVisionBlock", MASKED),
    "kimi_k25": ("Kimi_K25VisionEncoderLayer", PACKED),
    "minimax_m3_vl": ("MiniMaxM3VLVisionEncoderLayer", MASKED),
    "muse_glimmer": ("MuseGlimmerVisionEncoderLayer", PACKED),
    "muse_spark": ("MuseSparkVisionEncoderLayer", PACKED),
    "paddleocr_vl": ("PaddleOCRVisionEncoderLayer", ROW),
    "video_llama_3": ("VideoLlama3VisionEncoderLayer", ROW),
}
CLIPS = ("kimi_k25", "minimax_m3_vl")  # all frames of a clip attend to one another


class HfRows(HfPacked):
    """The blocks of towers that take images of any size, packed in one row (T, C) or (1, T, C).

    As in ``HfPacked`` the attention of a block runs by its parts, image by image, on whichever tokens are there.
    """

    name = "hf-rows"
    description = (
        "transformers PaddleOCR-VL, VideoLLaMA 3, Kimi K2.5, HunYuan-VL, MiniMax M3 and others that pack images"
    )
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"transformers.models.{folder}.modeling_{folder}.{kind}": halves for folder, (kind, halves) in BLOCKS.items()
    }
    images: ClassVar[str | None] = "pixel_values"

    def layout(self, owner: nn.Module) -> Layout:
        blocks: list[Any] = self.blocks(owner)
        halves = self.halves(blocks[0])
        kinds = getattr(owner.config, "layer_types", None) or ()
        return Layout(
            depth=len(blocks),
            dim=getattr(blocks[0], halves.norm1).weight.shape[0],
            heads=heads_of(getattr(blocks[0], halves.attention))[0],
            prefix=0,
            class_token=False,
            grid=(SIDE * SIDE,),
            windowed=frozenset(number for number, kind in enumerate(kinds) if kind == "window_attention"),
            sized=False,
        )

    def example(self, owner: nn.Module) -> dict[str, Any]:
        part: Any = getattr(owner, "patch_embed", None) or embeddings_of(owner)
        weight = next(p for p in part.parameters() if p.dim() > 1)
        generator = torch.Generator().manual_seed(0)
        patches = torch.rand(SIDE * SIDE, *weight.shape[1:], generator=generator) * 2 - 1
        given = {"pixel_values": shaped(owner, patches).to(weight)}
        given["grid_thw"] = torch.tensor([[1, SIDE, SIDE]], device=weight.device)
        if "merge_sizes" in inspect.signature(type(owner).forward).parameters:
            given["merge_sizes"] = torch.ones(1, dtype=torch.int64, device=weight.device)
        return given

    def lengths(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
        place = list(inspect.signature(type(owner).forward).parameters).index("grid_thw") - 1
        grid = kwargs.get("grid_thw", args[place] if len(args) > place else None)
        if grid is None or folder_of(owner) not in CLIPS:
            return super().lengths(owner, (), {"grid_thw": grid})
        return tuple(frames * rows * columns for frames, rows, columns in grid.tolist())

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        angles = kwargs.get("position_embeddings") or ()
        return super().reindex(block, {**kwargs, "position_embeddings": angles}, positions, prefix)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        if "angles" not in kwargs:  # the row as the model has it
            every = torch.arange(x.shape[-2], device=x.device).unsqueeze(0)
            placed = self.reindex(block, {**kwargs, "images": 1}, every, 0)
            return self.tapped(block, x.view(1, *x.shape[-2:]), tap, **placed).view(x.shape)
        if kwargs["windows"] is not None:
            tap.rows = WindowRows(kwargs["windows"])
        attention = getattr(block, self.halves(block).attention)
        with tap:
            return x + _attend(attention, self.attention_input(block, x), kwargs["angles"])


def folder_of(owner: nn.Module) -> str:
    """The folder in transformers that the class of ``owner``, or the one it is derived from, lies in."""
    modules = (base.__module__.split(".") for base in type(owner).__mro__)
    return next((parts[2] for parts in modules if parts[:2] == ["transformers", "models"]), "")


def shaped(owner: nn.Module, patches: Tensor) -> Tensor:
    """``patches`` (T, …) in the shape that ``owner`` takes them in."""
    folder = folder_of(owner)
    if folder == "paddleocr_vl":
        return patches.unsqueeze(0)
    return patches if folder == "kimi_k25" else patches.flatten(1)
