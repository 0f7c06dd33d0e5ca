"""transformers' towers of packed images that name their parts as CLIP does, have no rotary positions or take clips."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._transformers import embeddings_of, noise
from tokensieve.families.hf_clip import CLIP
from tokensieve.families.hf_packed import PACKED, SIDE, HfPacked

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

    def windowed(self, owner: nn.Module) -> Iterable[int]:
        kinds: Any = getattr(owner.config, "layer_types", None) or ()
        return (number for number, kind in enumerate(kinds) if kind == "window_attention")

    def example(self, owner: nn.Module) -> dict[str, Any]:
        part: Any = getattr(owner, "patch_embed", None) or embeddings_of(owner)
        weight = next(p for p in part.parameters() if p.dim() > 1)
        given = {"pixel_values": shaped(owner, noise(weight, SIDE * SIDE, *weight.shape[1:]))}
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
